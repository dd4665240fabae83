"""whittle's own search (arXiv 2510.07227's library) on the same teacher, in an environment of its own.

Its versions of transformers and others do not go with ours, so it is installed into a virtual environment below the
study's folder and runs ``whittle_search.py`` there. What it finds is a shape, whose units are the teacher's first ones;
the same shape is then cut out by slm_ray. whittle's command stops on teachers with grouped queries, so its Python API
is used, with choices that are legal for them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.common import as_ids
from benchmarks.peers.pruned import mean_loss
from benchmarks.peers.study import CALIBRATION, Spent, Study
from slm_ray.config.errors import UserError
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.records.files import read_json, whole_folder, write_json
from slm_ray.records.subnet import LayerUnits, SubnetSpec

VERSION = "0.6.0"
_SCRIPT = Path(__file__).with_name("whittle_search.py")
_INSTALL_SECONDS = 1800


def environment(folder: Path) -> Path:
    """The interpreter of an environment with whittle, made if it is not there.

    Raises:
        UserError: It cannot be installed.
    """
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.is_file():
        return python
    # The torch that is here, so that pip fetches no second one with another kind of GPU support.
    wanted = [f"whittle=={VERSION}", f"torch=={torch.__version__.split('+')[0]}"]
    commands = [[sys.executable, "-m", "venv", "--clear", str(folder)],
                [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]]  # fmt: skip
    for command in commands:
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"whittle {VERSION} was not installed within {_INSTALL_SECONDS} s") from error
        if found.returncode:
            last = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"whittle {VERSION} cannot be installed here: {last}")
    # It is asked for and not used; built for a torch with a GPU it cannot be imported beside one without, and what
    # imports it where it is there then fails too.
    if subprocess.run([str(python), "-c", "import torchvision"], capture_output=True).returncode:
        subprocess.run([str(python), "-m", "pip", "uninstall", "--yes", "--quiet", "torchvision"], capture_output=True)
    done.write_text("")
    return python


def write_problem(study: Study, folder: Path) -> None:
    """Write what the search reads: weights by whittle's names, the teacher's sizes, and calibration tokens."""
    teacher = study.teacher
    config, sizes = teacher.config(), study.architecture
    with whole_folder(folder) as place:
        save_file(lit_weights(teacher.state_as(torch.float32), sizes.num_hidden_layers), place / "weights.safetensors")
        ids = as_ids(study.tokens(CALIBRATION, study.options.whittle_tokens))
        save_file({"ids": ids}, place / "ids.safetensors")
        rope = getattr(config, "rope_parameters", None) or {}
        write_json(place / "problem.json", {
            "vocab_size": config.vocab_size, "n_embd": config.hidden_size, "n_layer": config.num_hidden_layers,
            "n_head": config.num_attention_heads, "n_query_groups": config.num_key_value_heads,
            "head_size": sizes.structure.head_dim, "intermediate_size": config.intermediate_size,
            "norm_eps": config.rms_norm_eps, "rope_base": rope.get("rope_theta", 10000.0),
            "sequence_length": study.options.sequence_length, "candidates": study.options.whittle_candidates,
            "seed": study.options.seed, "threads": study.options.threads,
        })  # fmt: skip


def lit_weights(state: Any, layers: int) -> dict[str, torch.Tensor]:
    """A Llama's weights by the names that whittle takes over from litgpt."""
    embedding = state["model.embed_tokens.weight"]
    found = {"transformer.wte.weight": embedding, "lm_head.weight": state.get("lm_head.weight", embedding),
             "transformer.ln_f.weight": state["model.norm.weight"]}  # fmt: skip
    for number in range(layers):
        theirs, ours = f"transformer.h.{number}.", f"model.layers.{number}."
        queries = [state[f"{ours}self_attn.{part}_proj.weight"] for part in "qkv"]
        found[f"{theirs}attn.qkv.weight"] = torch.cat(queries)
        names = {"attn.proj": "self_attn.o_proj", "norm_1": "input_layernorm", "norm_2": "post_attention_layernorm",
                 "mlp.fc_1": "mlp.gate_proj", "mlp.fc_2": "mlp.up_proj", "mlp.proj": "mlp.down_proj"}  # fmt: skip
        found |= {f"{theirs}{new}.weight": state[f"{ours}{old}.weight"] for new, old in names.items()}
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def first_units(teacher: Architecture, shape: dict[str, Any]) -> SubnetSpec:
    """The sub-network that whittle means by a shape: the first units of every kind, of the first layers."""
    whole = teacher.layers[0]
    per_group = whole.num_attention_heads // whole.num_key_value_heads
    kept = int(shape["num_heads"]) // whole.num_key_value_heads
    groups = tuple(range(whole.num_key_value_heads))
    queries = tuple(tuple(range(group * per_group, group * per_group + kept)) for group in groups)
    neurons = tuple(range(int(shape["mlp_ratio"] * shape["embed_dim"])))
    layers = tuple(LayerUnits(number, groups, queries, neurons) for number in range(int(shape["depth"])))
    return SubnetSpec(tuple(range(int(shape["embed_dim"]))), layers)


def whittle_start(study: Study) -> tuple[SubnetSpec, Spent, dict[str, Any]]:
    """The best sub-network within the budget that whittle's search found.

    Raises:
        UserError: whittle cannot be installed or run here, or found none within the budget.
    """
    folder = study.out / "whittle"
    if not (folder / "problem.json").is_file():
        write_problem(study, folder)
    if not (folder / "result.json").is_file():
        python = environment((study.out / "whittle-env").resolve())
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # -P: what it imports must not find the files beside the script, which have names such as training.
        done = subprocess.run([str(python), "-P", str(_SCRIPT), str(folder.resolve())], capture_output=True, text=True,
                              env=variables)  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"whittle {VERSION} cannot run here: {last}")
    result = read_json(folder / "result.json")
    return choose(study, result)


def choose(study: Study, result: dict[str, Any]) -> tuple[SubnetSpec, Spent, dict[str, Any]]:
    """Of what the search tried, the one with the lowest loss within the budget, as slm_ray counts parameters.

    Raises:
        UserError: There is none.
    """
    teacher, length = study.architecture, study.options.sequence_length
    tried = []
    for candidate in result["candidates"]:
        if candidate["loss"] is not None:
            spec = first_units(teacher, candidate["shape"])
            tried.append((candidate, spec, spec.architecture_in(teacher)))
    inside = [one for one in tried if num_params(one[2]) <= study.limit]
    if not inside:
        raise UserError(f"none of whittle's {len(tried)} legal candidates is within {study.limit:,} parameters")
    candidate, spec, _ = min(inside, key=lambda one: one[0]["loss"])
    spent = Spent(result["seconds"], None)
    for _, _, sizes in tried:
        spent.add("candidates", float(flops_per_token(sizes, length)) * result["tokens"])
    own = mean_loss(study.runner, spec, as_ids(study.tokens(CALIBRATION, study.options.whittle_tokens)))
    note = {"shape": candidate["shape"], "loss_by_whittle": candidate["loss"], "loss_of_the_same_cut": own,
            "candidates": len(result["candidates"]), "within_budget": len(inside), "version": VERSION}  # fmt: skip
    return spec, spent, note
