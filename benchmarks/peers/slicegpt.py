"""SliceGPT (arXiv 2401.15024): rotate the residual stream to its principal components, block by block, and cut it.

Written from the paper for Llama: the principal components of what each norm puts out, gathered on what the blocks
before it make of the calibration text after they were cut; every block has directions of its own, and a matrix in the
skip connection turns one block's into the next's. The same width is kept everywhere.

The paper gives the output head directions of its own, so a tied embedding becomes two tables. Where the table is a
large part of a small model, one table with one more matrix in front of the head may be better at the same size: both
are made, and the one with the lower loss on calibration text is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from benchmarks.peers.sliced import SlicedLlamaConfig, SlicedLlamaForCausalLM, WideNorm
from slm_ray.config.errors import UserError
from slm_ray.models.extraction import reset_rotary

WIDTH_STEP = 8  # widths are rounded to it, as in the paper's code
_BATCH_TOKENS = 2048
_FORGET = ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version")
State = Mapping[str, torch.Tensor]


def sliced_params(config: Any, width: int, *, tied: bool) -> int:
    """Parameters of a Llama without biases cut to a width, the matrices in its skip connections included.

    Args:
        config: The teacher's config.
        width: Directions kept.
        tied: One table serves as embedding and head, with a matrix in front of the head.
    """
    head = config.head_dim or config.hidden_size // config.num_attention_heads
    attention = 2 * head * (config.num_attention_heads + config.num_key_value_heads)
    layer = width * (attention + 3 * config.intermediate_size) + 2 * width**2
    tables = config.vocab_size * width
    return config.num_hidden_layers * layer + (tables + width**2 if tied else 2 * tables)


def sliced_flops_per_token(config: Any, width: int, sequence_length: int, *, tied: bool) -> int:
    """Matrix-multiplication FLOPs of one token's forward pass, counted as ``slm_ray`` counts them."""
    head = config.head_dim or config.hidden_size // config.num_attention_heads
    weights = sliced_params(config, width, tied=True) - (0 if tied else width**2)
    return 2 * (weights + config.num_hidden_layers * 2 * config.num_attention_heads * head * sequence_length)


def width_within(config: Any, limit: int, *, tied: bool) -> int:
    """The largest width, in steps, that stays within a number of parameters.

    Raises:
        UserError: Even one step does not.
    """
    widths = range(WIDTH_STEP, config.hidden_size + 1, WIDTH_STEP)
    fitting = [width for width in widths if sliced_params(config, width, tied=tied) <= limit]
    if not fitting:
        raise UserError(f"no width fits {limit:,} parameters: give a larger --share")
    return fitting[-1]


def principal_directions(signals: torch.Tensor, width: int) -> torch.Tensor:
    """The directions in which signals are largest.

    Args:
        signals: ``[tokens, hidden]``.
        width: How many directions.

    Returns:
        ``[hidden, width]`` orthonormal columns, the largest first; in float64, as the paper's authors advise.
    """
    wide = signals.double()
    _, directions = torch.linalg.eigh(wide.T @ wide)
    return directions.flip(1)[:, :width]


class _Slicer:
    """Cuts one teacher to one width, from the first block to the last."""

    def __init__(self, config: Any, state: State, ids: torch.Tensor, width: int, *, tied: bool) -> None:
        fields = {name: value for name, value in config.to_dict().items() if name not in _FORGET}
        head = config.head_dim or config.hidden_size // config.num_attention_heads
        changes = {"hidden_size": width, "head_dim": head, "tie_word_embeddings": tied,
                   "norm_width": config.hidden_size, "head_rotation": tied}  # fmt: skip
        self.model = SlicedLlamaForCausalLM(SlicedLlamaConfig(**{**fields, **changes})).eval().requires_grad_(False)
        reset_rotary(self.model)
        self.state, self.ids, self.width, self.tied = state, ids, width, tied
        self.norm = WideNorm(config.hidden_size, config.rms_norm_eps)

    def weight(self, name: str) -> torch.Tensor:
        """A teacher's tensor in float64."""
        return self.state[f"model.{name}.weight"].double()

    def directions_of(self, stream: torch.Tensor) -> torch.Tensor:
        """The principal directions of what a norm makes of a stream ``[batch, sequence, teacher's hidden]``."""
        return principal_directions(self.norm(stream).flatten(0, -2), self.width)

    @torch.no_grad()
    def slice(self) -> Any:
        """The cut model."""
        embedding = self.weight("embed_tokens")
        stream = functional.embedding(self.ids, embedding.float())
        first = before = self.directions_of(stream)
        self.model.model.embed_tokens.weight.data = (embedding @ first).float()
        kept = stream @ first.float()
        positions = torch.arange(self.ids.shape[1]).unsqueeze(0)
        rotary = self.model.model.rotary_emb(kept, position_ids=positions)
        for number, layer in enumerate(self.model.model.layers):
            kept, before = self._attention(f"layers.{number}", layer, kept, before, rotary)
            kept, before = self._mlp(f"layers.{number}", layer, kept, before)
        scale = self.weight("norm").unsqueeze(1)
        if self.tied:
            self.model.model.norm[1].weight.data = (before.T @ (scale * first)).T.contiguous().float()
        else:
            table = self.state.get("lm_head.weight", self.state["model.embed_tokens.weight"]).double()
            self.model.lm_head.weight.data = (table @ (scale * before)).float()
        self.model.tie_weights()
        return self.model

    def _attention(self, name: str, layer: Any, kept: Any, before: Any, rotary: Any) -> tuple[Any, Any]:
        scale = self.weight(f"{name}.input_layernorm").unsqueeze(1)
        for part in ("q_proj", "k_proj", "v_proj"):
            new = self.weight(f"{name}.self_attn.{part}") @ (scale * before)
            getattr(layer.self_attn, part).weight.data = new.float()
        output = self.weight(f"{name}.self_attn.o_proj")
        heads: list[torch.Tensor] = []
        hook = layer.self_attn.o_proj.register_forward_pre_hook(lambda _module, x: heads.append(x[0]))
        for rows in layer.input_layernorm(kept).split(max(1, _BATCH_TOKENS // kept.shape[1])):
            layer.self_attn(hidden_states=rows, position_embeddings=rotary, attention_mask=None)
        hook.remove()
        return self._joined(layer.attention_skip, layer.self_attn.o_proj, output, torch.cat(heads), kept, before)

    def _mlp(self, name: str, layer: Any, kept: Any, before: Any) -> tuple[Any, Any]:
        scale = self.weight(f"{name}.post_attention_layernorm").unsqueeze(1)
        for part in ("gate_proj", "up_proj"):
            getattr(layer.mlp, part).weight.data = (self.weight(f"{name}.mlp.{part}") @ (scale * before)).float()
        x = layer.post_attention_layernorm(kept)
        neurons = layer.mlp.act_fn(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x)
        output = self.weight(f"{name}.mlp.down_proj")
        return self._joined(layer.mlp_skip, layer.mlp.down_proj, output, neurons, kept, before)

    def _joined(
        self, skip: Any, projection: Any, output: torch.Tensor, units: torch.Tensor, kept: torch.Tensor,
        before: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Add what a sub-layer's units write to the stream, in directions that suit the sum."""
        stream = kept @ before.float().T + units @ output.float().T
        after = self.directions_of(stream)
        turn = before.T @ after
        skip.weight.data = turn.T.contiguous().float()
        projection.weight.data = (after.T @ output).float()
        return kept @ turn.float() + units @ projection.weight.T, after


def slice_model(config: Any, state: State, ids: torch.Tensor, width: int, *, tied: bool) -> Any:
    """Cut a Llama without biases to a width.

    Args:
        config: The teacher's config.
        state: Its weights.
        ids: ``[samples, length]`` calibration tokens.
        width: Directions of the residual stream to keep.
        tied: One table serves as embedding and head.

    Returns:
        A causal LM in fp32.

    Raises:
        UserError: The teacher is no Llama, or has biases.
    """
    if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
        raise UserError("the SliceGPT row is written for Llama without biases: leave it out with --peers")
    return _Slicer(config, state, ids, width, tied=tied).slice()
