"""A model as a GGUF file for llama.cpp, Ollama and LM Studio.

Plain models are written under their own architecture, Llama-shaped students whose layers differ as ``deci``, which
llama.cpp reads with heads, key-value heads and neurons per layer.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from slm_ray.config.errors import UserError
from slm_ray.export.vocabulary import add_vocabulary
from slm_ray.models.families import HEAD, Family
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.lineage import find_lineage

OWN_KINDS = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16, "Q8_0": Kind.Q8_0}
_QUANTIZER = "llama-quantize"
_HEAD_NORMS = ("q_norm", "k_norm")
_BLOCK = 32  # numbers that Q8_0 scales together; K-quants scale 256
_FILLED_NEURONS = 32  # of zeros, where a layer has attention and no MLP: llama.cpp would leave out its attention


def check_kinds(kinds: tuple[str, ...]) -> None:
    """Refuse a quantisation that cannot be made here, before anything is written."""
    needed = [kind for kind in kinds if kind not in OWN_KINDS]
    if needed and shutil.which(_QUANTIZER) is None:
        raise UserError(
            f"--quantize {needed[0]} is made by {_QUANTIZER}, which is not on the PATH: install llama.cpp, or "
            f"give {', '.join(OWN_KINDS)}"
        )


def _check_model(config: Any, family: Family, sizes: Architecture) -> str:
    """The name of the architecture that llama.cpp reads it as."""
    plain = "export it with --to plain first, and that folder with --to gguf"
    names = family.gguf
    if names is None:
        raise UserError(f"no architecture of llama.cpp is known here for the family {family.model_type}")
    if any(layer.sliding_window and layer.sliding_window < sizes.structure.max_position_embeddings
           for layer in sizes.layers):  # fmt: skip
        raise UserError("its attention slides over a window, which its GGUF architecture has no field for")
    if sizes.is_uniform and config.model_type == family.model_type:
        return names.plain
    if names.per_layer is None or sizes.structure.qkv_bias or sizes.structure.mlp_bias:
        raise UserError(
            f"its layers differ in size, and llama.cpp reads that of Llama-shaped models without biases alone: {plain}"
        )
    return names.per_layer


def _filled(shape: LayerShape, is_first: bool) -> LayerShape:
    """A layer as llama.cpp takes it: with an MLP, and in the first layer with a head, which tells a head's width."""
    heads = shape.num_attention_heads or int(is_first)
    kv_heads = shape.num_key_value_heads or int(is_first)
    return LayerShape(heads, kv_heads, shape.intermediate_size or _FILLED_NEURONS)


def _add_sizes(writer: gguf.GGUFWriter, config: Any, sizes: Architecture, layers: list[LayerShape]) -> None:
    """The numbers that llama.cpp builds the model from; lists where layers differ."""
    heads, kv_heads, neurons = (
        [getattr(layer, name) for layer in layers]
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    )

    def one(values: list[int]) -> Any:
        return values[0] if len(set(values)) == 1 else values

    structure = sizes.structure
    writer.add_vocab_size(structure.vocab_size)
    writer.add_context_length(structure.max_position_embeddings)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_head_count(one(heads))
    writer.add_head_count_kv(one(kv_heads))
    writer.add_feed_forward_length(one(neurons))
    writer.add_key_length(structure.head_dim)
    writer.add_value_length(structure.head_dim)
    writer.add_rope_dimension_count(structure.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _rope(writer: gguf.GGUFWriter, config: Any, head_dim: int) -> torch.Tensor | None:
    """Write the rotary base; gives Llama 3's factors per frequency ``[head_dim / 2]`` where the model has them."""
    rope = dict(config.rope_parameters)
    base, kind = float(rope["rope_theta"]), rope.get("rope_type", "default")
    writer.add_rope_freq_base(base)
    if kind == "default":
        return None
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        return None
    if kind != "llama3":
        raise UserError(f"its rotary positions are of the kind '{kind}': only default, linear and llama3 are exported")
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    lengths = 2 * math.pi * base ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    smooth = (rope["original_max_position_embeddings"] / lengths - low) / (high - low)
    return (1 / ((1 - smooth.clamp(0, 1)) / factor + smooth.clamp(0, 1))).float()


def _paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys ``[heads * head_dim, …]`` as llama.cpp rotates them: neighbours, not halves."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _zeros(name: str, sizes: Architecture, shape: LayerShape) -> torch.Tensor:
    """A tensor of a sub-layer that the student skips and llama.cpp wants."""
    width, queries = sizes.hidden_size, shape.num_attention_heads * sizes.structure.head_dim
    keys, neurons = shape.num_key_value_heads * sizes.structure.head_dim, shape.intermediate_size
    outputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": neurons, "up_proj": neurons}
    leaf = name.split(".")[-2]
    if leaf in outputs:
        return torch.zeros(outputs[leaf], width)
    return torch.zeros(width, queries if leaf == "o_proj" else neurons) if leaf.endswith("proj") else torch.ones(width)


def _tensors(model: Any, family: Family, sizes: Architecture, kept: list[int], layers: list[LayerShape]) -> Iterator[
    tuple[str, torch.Tensor]
]:  # fmt: skip
    """The model's tensors, layers numbered anew, by the names of transformers."""
    state = model.state_dict()
    for name in family.global_tensors:
        if name in state and not (name == HEAD and sizes.structure.tie_word_embeddings):
            yield name, state[name]
    for number, (source, shape) in enumerate(zip(kept, layers, strict=True)):
        own = sizes.layers[source]
        parts = ((family.attention, shape.num_attention_heads, own.num_attention_heads),
                 (family.mlp, shape.intermediate_size, own.intermediate_size))  # fmt: skip
        for part, wanted, has in parts:
            for name in part.tensors if wanted else ():
                tensor = state.get(family.layer_prefix.format(source) + name) if has else None
                if tensor is None and not has and name.endswith("weight") and name.split(".")[-2] not in _HEAD_NORMS:
                    tensor = _zeros(name, sizes, shape)
                if tensor is None:
                    continue
                if family.gguf and family.gguf.pairs and (found := re.fullmatch(r"self_attn\.([qk])_proj\.\w+", name)):
                    heads = shape.num_attention_heads if found[1] == "q" else shape.num_key_value_heads
                    tensor = _paired(tensor, heads)
                yield family.layer_prefix.format(number) + name, tensor


def _encoded(tensor: torch.Tensor, kind: Kind) -> tuple[np.ndarray[Any, Any], Kind]:
    """A tensor's bytes; vectors stay fp32, and rows that blocks do not divide become fp16."""
    values = tensor.detach().float().numpy()
    if values.ndim == 1:
        kind = Kind.F32
    elif kind == Kind.Q8_0 and values.shape[-1] % _BLOCK:
        kind = Kind.F16
    return gguf.quants.quantize(values, kind), kind


def uneven_rows(model: Any) -> list[str]:
    """The matrices whose rows Q8_0's blocks do not divide."""
    return [name for name, tensor in model.named_parameters() if tensor.dim() == 2 and tensor.shape[1] % _BLOCK]


def write_gguf(model: Any, family: Family, folder: Path, out: Path, kind: str) -> None:
    """Write a model in one of ``OWN_KINDS``.

    ``folder``: Where its tokenizer and lineage lie. ``out``: The file.

    Raises:
        UserError: llama.cpp has no architecture for it, or its tokenizer is of a kind that is not exported.
    """
    config, sizes = model.config, family.architecture(model.config)
    name = _check_model(config, family, sizes)
    kept = [at for at, layer in enumerate(sizes.layers) if layer.num_attention_heads or layer.intermediate_size]
    layers = [sizes.layers[at] for at in kept]
    if family.gguf and name == family.gguf.per_layer:
        layers = [_filled(layer, at == 0) for at, layer in enumerate(layers)]
    writer = gguf.GGUFWriter(out, name)
    lineage = find_lineage(folder)
    writer.add_name(folder.resolve().name if lineage is None else f"{lineage.teacher_name} pruned by slm_ray")
    if lineage is not None and lineage.licensed_by is not None and lineage.licensed_by.licence:
        writer.add_license(lineage.licensed_by.licence)
    if lineage is not None and lineage.genes:
        writer.add_description(f"trial {lineage.trial}: {lineage.genes}"[:1000])
    writer.add_file_type({"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}[kind])
    _add_sizes(writer, config, sizes, layers)
    factors = _rope(writer, config, sizes.structure.head_dim)
    add_vocabulary(writer, folder, sizes.structure.vocab_size)
    arch = next(one for one, written in gguf.MODEL_ARCH_NAMES.items() if written == name)
    names = gguf.get_tensor_name_map(arch, len(layers))
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy(), raw_dtype=Kind.F32)
    for own, tensor in _tensors(model, family, sizes, kept, layers):
        written = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise UserError(f"llama.cpp's {name} has no tensor for '{own}': export it with --to plain")
        data, chosen = _encoded(tensor, OWN_KINDS[kind])
        writer.add_tensor(written, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def requantize(source: Path, out: Path, kind: str) -> None:
    """Have llama.cpp's own program make a file of another kind.

    Raises:
        UserError: It failed; its last line says why.
    """
    done = subprocess.run([_QUANTIZER, str(source), str(out), kind], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise UserError(f"{_QUANTIZER} could not make {kind}: {last[0] if last else f'status {done.returncode}'}")
