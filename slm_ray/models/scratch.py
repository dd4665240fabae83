"""Models from scratch, and the ladder: one dial, the number of parameters, decides depth, width, heads and MLP.

Shapes: the width is near 48 times the depth, and everything is a multiple of 64. Learning rate and batch
follow Porian et al. (arXiv 2406.19146), as OLMo's ladders do (arXiv 2412.04403). docs/scratch.md has the formulae.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.units import format_count
from slm_ray.models.families import LEARNED, POSITION_KINDS, ROTARY, scratch_family, scratch_structure
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.cost import embedding_params, num_params

POSITIONS = POSITION_KINDS
# Positions that no table ends may be read further out than was trained: that far does a model say it goes.
_FURTHER = 16
STEP = 64  # widths are multiples of it
# Width over depth: 64 in nanochat, GPT-2 and Pythia-160M, 19 in SmolLM2; small models gain from depth (MobileLLM, arXiv
# 2402.14905), and lose speed by it.
ASPECT = 48
SIZES = ("20M", "40M", "70M", "110M", "160M")
SMALLEST, LARGEST = 100_000, 20_000_000_000
_WITHIN = 0.03  # how far off the target a model may be
_ASPECTS = (8, 160)  # deepest and flattest
_MLP_RATIOS = (2.0, 4.0)  # MLP width over width; 8/3 makes a gated MLP as large as a plain one of 4
_MLP_RATIO = 8 / 3
_SMALL_WIDTH = 256  # from here on heads are 64 wide, below it 32, so that there are several

# Porian et al.: the best learning rate and batch (in tokens) at 108M parameters, and their exponents in the size.
_REFERENCE_PARAMS, _REFERENCE_RATE, _REFERENCE_BATCH = 108e6, 0.0047, 160 * 2048
_RATE_EXPONENT, _BATCH_EXPONENT = -1 / 3, 2 / 3
_TOKENS_PER_PARAM = 20  # what they hold for (Chinchilla, arXiv 2203.15556)
_TOKENS_EXPONENT = 0.383  # of the batch in the tokens, at one size (Bergsma et al., arXiv 2505.13738)
_HIGHEST_RATE = 0.01


@dataclass(frozen=True)
class Rung:
    """A size and what it is trained with."""

    target: int  # The requested number of parameters
    architecture: Architecture  # Sizes, rotary positions

    @property
    def params(self) -> int:
        """Parameters, the embedding's included."""
        return num_params(self.architecture)

    @property
    def matrix_params(self) -> int:
        """Parameters without the token embedding and the table of positions."""
        structure, hidden = self.architecture.structure, self.architecture.hidden_size
        return self.params - embedding_params(structure, hidden) + hidden  # the final norm is no embedding

    def batch_tokens(self, tokens: float | None = None) -> float:
        """Tokens of one step for a training of so many tokens; None: of 20 per parameter.

        160 x 2048 (N / 108M)^(2/3) (D / 20N)^0.383, where N is :attr:`matrix_params`.
        """
        share = 1.0 if tokens is None else tokens / (_TOKENS_PER_PARAM * self.matrix_params)
        size = (self.matrix_params / _REFERENCE_PARAMS) ** _BATCH_EXPONENT
        return _REFERENCE_BATCH * size * share**_TOKENS_EXPONENT

    def learning_rate(self, batch_tokens: float) -> float:
        """AdamW's peak rate for steps of so many tokens.

        0.0047 (N / 108M)^(-1/3) at the batch that goes with it; at another it moves with the square root of the batch
        (Malladi et al., arXiv 2205.10287), and nowhere is it over 0.01.
        """
        own = _REFERENCE_RATE * (self.matrix_params / _REFERENCE_PARAMS) ** _RATE_EXPONENT
        return min(own * math.sqrt(batch_tokens / self.batch_tokens()), _HIGHEST_RATE)

    def batch_size(self, tokens: float, sequence_length: int, multiple: int = 1) -> int:
        """Sequences of one step, a multiple of ``multiple`` (of eight of them where there is room).

        ``multiple``: A number that the batch must be a multiple of, for the workers.
        """
        wanted = self.batch_tokens(tokens) / sequence_length
        step = 8 * multiple if wanted >= 8 * multiple else multiple
        return max(step, round(wanted / step) * step)


def pad_vocabulary(size: int) -> int:
    """A vocabulary's rows, a multiple of 64 so that products with the output head are fast."""
    return -(-size // STEP) * STEP


def make_shape(vocab_size: int, hidden_size: int, layers: int, intermediate_size: int) -> Architecture:
    """Uniform layers with rotary positions, as many key-value heads as query heads, and a tied embedding."""
    structure = scratch_structure(vocab_size, head_dim=64 if hidden_size >= _SMALL_WIDTH else 32)
    heads = hidden_size // structure.head_dim
    return Architecture(structure, hidden_size, (LayerShape(heads, heads, intermediate_size),) * layers)


def _mlp_widths(hidden_size: int) -> range:
    low, high = (math.ceil(ratio * hidden_size / STEP) * STEP for ratio in _MLP_RATIOS)
    return range(low, high + 1, STEP)


def _depths(hidden_size: int) -> range:
    return range(max(1, math.ceil(hidden_size / _ASPECTS[1])), hidden_size // _ASPECTS[0] + 1)


def _shapes(target: int, vocab_size: int) -> Iterator[list[Architecture]]:
    """For every width and depth, the models with the MLP widths on either side of the target size.

    Ends with the first width whose models are all too large.
    """
    for hidden_size in itertools.count(STEP, STEP):
        widths, depths = _mlp_widths(hidden_size), _depths(hidden_size)
        for layers in depths:
            least = num_params(make_shape(vocab_size, hidden_size, layers, widths[0]))
            steps = (target - least) // (3 * hidden_size * STEP * layers)
            around = {min(max(steps + more, 0), len(widths) - 1) for more in (0, 1)}
            yield [make_shape(vocab_size, hidden_size, layers, widths[step]) for step in sorted(around)]
            if least > target * (1 + _WITHIN):
                break
        if num_params(make_shape(vocab_size, hidden_size, depths[0], widths[0])) > target * (1 + _WITHIN):
            return


def _oddness(shape: Architecture, target: int) -> float:
    """How far a shape is from the proportions, and a little from the size, that are wanted."""
    aspect = shape.hidden_size / shape.num_hidden_layers / ASPECT
    mlp = shape.layers[0].intermediate_size / shape.hidden_size / _MLP_RATIO
    return abs(math.log(aspect)) + abs(math.log(mlp)) + 10 * abs(math.log(num_params(shape) / target))


def find_rung(target: int, vocab_size: int) -> Rung:
    """The model of the ladder with about so many parameters, the embedding's included."""
    named = f"--scratch {format_count(target)}"
    if not SMALLEST <= target <= LARGEST:
        raise UserError(f"{named} must lie between {format_count(SMALLEST)} and {format_count(LARGEST)} parameters")
    groups = list(_shapes(target, vocab_size))
    nearest = [min(group, key=lambda shape: abs(num_params(shape) - target)) for group in groups]
    near = [shape for shape in nearest if abs(num_params(shape) / target - 1) <= _WITHIN]
    if near:
        return Rung(target, min(near, key=lambda shape: _oddness(shape, target)))
    advice = "or a smaller vocabulary" + (", like --tokenizer train:8192" if vocab_size > 8192 else "")
    sizes = [num_params(shape) for group in groups for shape in group]
    if min(sizes) > target:
        raise UserError(
            f"{named} is too small for a vocabulary of {vocab_size:,}: at the least width, {STEP}, the embedding alone "
            f"has {format_count(vocab_size * STEP)} parameters; the smallest model has {format_count(min(sizes))} "
            f"({min(sizes):,}): give that, {advice}"
        )
    below = max(size for size in sizes if size <= target)
    above = min(size for size in sizes if size > target)
    raise UserError(
        f"{named}: no widths that are multiples of {STEP} give that size with a vocabulary of {vocab_size:,}; the "
        f"nearest sizes are {format_count(below)} ({below:,}) and {format_count(above)} ({above:,}): give "
        f"one of them, {advice}"
    )


def positions_limit(positions: str, sequence_length: int) -> int:
    """The longest sequence that a model takes: with learned positions, ``sequence_length``, which it is trained on.

    How well it reads beyond what it was trained on is up to the positions, and what length extrapolation measures.
    """
    return sequence_length if positions == LEARNED else _FURTHER * sequence_length


def with_positions(architecture: Architecture, positions: str, sequence_length: int) -> Architecture:
    """A model's sizes with other positions; the layers are the same, a table of positions comes on top."""
    if positions not in POSITIONS:
        raise unknown_name("kind of positions", positions, POSITIONS)
    structure = dataclasses.replace(
        architecture.structure, family=scratch_family(positions).model_type,
        learned_positions=sequence_length if positions == LEARNED else 0,
        max_position_embeddings=positions_limit(positions, sequence_length),
    )  # fmt: skip
    return dataclasses.replace(architecture, structure=structure)


def scratch_config(architecture: Architecture, positions: str, tokenizer: Any = None) -> Any:
    """The Hugging Face config of a model with these sizes.

    ``tokenizer``: Whose special tokens it names; None: none.
    """
    structure, layer = architecture.structure, architecture.layers[0]
    # Not the padding token: often it is the end of a document, whose embedding would then never be trained.
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos")}
    fields: dict[str, Any] = {
        "vocab_size": structure.vocab_size, "hidden_size": architecture.hidden_size,
        "intermediate_size": layer.intermediate_size, "num_hidden_layers": architecture.num_hidden_layers,
        "num_attention_heads": layer.num_attention_heads, "num_key_value_heads": layer.num_key_value_heads,
        "head_dim": structure.head_dim, "max_position_embeddings": structure.max_position_embeddings,
        "tie_word_embeddings": structure.tie_word_embeddings, **special,
    }  # fmt: skip
    family = scratch_family(positions)
    kind = {} if family.model_type == scratch_family(ROTARY).model_type else {"positions": positions}
    return family.plain_config_class()(**fields, **kind)


def build_scratch(architecture: Architecture, positions: str, seed: int, tokenizer: Any = None) -> Any:
    """A model in fp32 with weights as its class initialises them (normal, standard deviation 0.02; norms are 1)."""
    import torch
    from transformers import AutoModelForCausalLM

    config = scratch_config(architecture, positions, tokenizer)
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config).float()
    model.config.dtype = torch.float32
    return model
