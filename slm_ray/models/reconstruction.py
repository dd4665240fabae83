"""Reconstruction: a pruned student's weights refitted in closed form, layer by layer, to its teacher's outputs.

A pruned student adds too little to the residual stream, and every layer reads a stream that earlier layers have already
changed. Both are corrected without training. Layers are fitted in order, each on the student's own inputs (the layers
before it are reconstructed already):

- Projections that read the stream (queries, keys, values, gate, up) are fitted to the teacher's projections of the
  teacher's stream. This also compensates for dropped residual channels.
- Projections that write to it (attention output, MLP output, one map behind all experts of a mixture) are fitted to the
  change of the teacher's stream from here to the student's next sub-layer, which compensates for sub-layers dropped in
  between, plus a part of the error that the student's stream has accumulated.

Each fit is a ridge regression towards the present weights, so directions without evidence in the text keep theirs, and
little text changes little.
Least squares on a pruned layer's outputs is He et al., arXiv 1707.06168; the order is that of GPTQ and SparseGPT
(arXiv 2210.17323, 2301.00774).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slm_ray.models.extraction import build_with, embedding_ratio
from slm_ray.models.families import HIDDEN, Family
from slm_ray.models.least_squares import Sums, rough_products, square_flops
from slm_ray.models.slicing import Index, hidden_index, layer_indices, layer_slices
from slm_ray.models.sub_layers import ATTENTION, MLP, SubLayer, TakenApart
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token
from slm_ray.records.subnet import SubnetSpec

Chunks = list[torch.Tensor]
_BATCH_SEQUENCES = 4
_NEAR_ZERO = 0.1  # as a share of the mean square of a norm's scales


@dataclass(frozen=True)
class ReconstructionSettings:
    """How a student is reconstructed; the defaults were measured best.

    Attributes:
        write_prior: How many tokens of evidence the present weights of a writing projection count for: a ridge of so
            many times the inputs' mean square.
        pull: Share of the stream's accumulated error that the next sub-layer corrects.
        read_prior: The same for reading projections.
        scale_norm: Fit the scale of the final norm too.
        bf16: Multiply in bf16, in forward passes and in sums of products; weights, streams and sums keep their types.
    """

    write_prior: float = 4096
    pull: float = 1.0
    read_prior: float = 4096
    scale_norm: bool = True
    bf16: bool = False


@dataclass(frozen=True)
class SubLayerFit:
    """The error of one sub-layer's output.

    Attributes:
        layer: The student's layer.
        kind: ``attention`` or ``mlp``.
        before: Squared error before the fit, as a share of the target's own square.
        after: After it.
    """

    layer: int
    kind: str
    before: float
    after: float


def _multiplying(is_bf16: bool, device: torch.device) -> torch.autocast:
    """A context in which matrices are multiplied in bf16, or plainly."""
    # Weights are changed between passes, so no copy of them in bf16 may be kept.
    return torch.autocast(device.type, torch.bfloat16, enabled=is_bf16, cache_enabled=False)


class _Teacher:
    """The teacher's residual stream, one sub-layer at a time."""

    def __init__(
        self, state: Mapping[str, torch.Tensor], config: Any, family: Family, batches: Chunks, is_bf16: bool
    ) -> None:
        self._is_bf16 = is_bf16
        self.apart, self.state = TakenApart(build_with(state, config, family), family), state
        self.stream: Chunks = [self.apart.begin(batch) for batch in batches]
        self.entry = self.stream
        self.normed: Chunks = []

    def arrive(self, position: int) -> SubLayer:
        """Compute the normalised input of the sub-layer at a position."""
        sub = self.apart.sub_layer(position // 2, position % 2)
        assert sub is not None
        if position % 2 == ATTENTION:
            self.entry = self.stream
        read = self.entry if self.apart.is_parallel else self.stream
        self.normed = [sub.norm(chunk) for chunk in read]
        return sub

    def behind(self, position: int, sub: SubLayer) -> Chunks:
        """The stream with the sub-layer's output added."""
        kind = position % 2
        with _multiplying(self._is_bf16, self.stream[0].device):
            return [
                chunk + sub.written(sub.inner(normed, self.apart.call(kind, len(chunk), position // 2)))
                for chunk, normed in zip(self.stream, self.normed, strict=True)
            ]


class _Student:
    """One student, walked through its layers beside the teacher."""

    def __init__(
        self, model: Any, spec: SubnetSpec, teacher: Architecture, family: Family, batches: Chunks,
        settings: ReconstructionSettings,
    ) -> None:  # fmt: skip
        self.apart, self.spec, self.teacher, self.settings = TakenApart(model, family), spec, teacher, settings
        self.device = batches[0].device
        kept = hidden_index(spec, teacher)
        self.hidden: Index = kept if kept is None else kept.to(self.device)
        self.num_tokens = sum(batch.numel() for batch in batches)
        rows = None if spec.vocabulary is None else torch.tensor(spec.vocabulary, device=self.device)
        own = batches if rows is None else [torch.searchsorted(rows, batch) for batch in batches]
        self.stream: Chunks = [self.apart.begin(batch) for batch in own]
        self.entry, self._entry_layer = self.stream, -1
        self.places = [
            (2 * units.source + kind, number, kind)
            for number, units in enumerate(spec.layers)
            for kind in (ATTENTION, MLP)
            if (units.neurons if kind == MLP else units.kv_heads)
        ]
        self.fits: list[SubLayerFit] = []
        self._sub: SubLayer | None = None
        self._inputs: Chunks = []
        self._start: Chunks = []

    def is_at(self, position: int) -> bool:
        """Whether its next sub-layer comes from the teacher's at this position."""
        at = self.places[len(self.fits) + (self._sub is not None)][0] if self._has_more() else None
        return at == position

    def _has_more(self) -> bool:
        return len(self.fits) + (self._sub is not None) < len(self.places)

    def step(self, teacher: _Teacher) -> None:
        """Finish the sub-layer that waits for its target, the teacher's present stream, and begin the next."""
        if self._sub is not None:
            self.write(teacher.stream)
        self.read(teacher)

    def read(self, teacher: _Teacher) -> None:
        """Begin the next sub-layer: fit its reading projections, and run it up to its writing projection."""
        _, number, kind = self.places[len(self.fits)]
        sub = self.apart.sub_layer(number, kind)
        assert sub is not None
        if number != self._entry_layer:
            self.entry, self._entry_layer = self.stream, number
        source = self.entry if self.apart.is_parallel else self.stream
        normed = [sub.norm(chunk) for chunk in source]
        settings = self.settings
        self._fit_readers(sub, number, normed, teacher)
        with _multiplying(settings.bf16, self.device):
            self._inputs = [sub.inner(chunk, self.apart.call(kind, len(chunk), number)) for chunk in normed]
        self._sub, self._start = sub, teacher.stream

    def _fit_readers(self, sub: SubLayer, number: int, normed: Chunks, teacher: _Teacher) -> None:
        """Fit the reading projections.

        The teacher's input is regressed once on the student's, ``t ~ M n``; each projection ``A`` becomes ``A M``.
        """
        settings, units = self.settings, self.spec.layers[number]
        channels = self.spec.hidden
        sums = Sums(len(channels), teacher.normed[0].shape[-1], bias=False, device=self.device)
        for mine, theirs in zip(normed, teacher.normed, strict=True):
            mine, theirs = mine.flatten(0, 1), theirs.flatten(0, 1)
            sums.add(mine, self._less(theirs, mine))
        change = sums.solve(settings.read_prior / self.num_tokens).weight  # [teacher's hidden, kept channels]
        indices = layer_indices(units, None, self.teacher) | {HIDDEN: None}
        whole = dict(layer_slices(teacher.state, self.apart.family, units, indices))
        for name, reader in sub.readers.items():
            tensor = whole[name].double()
            theirs = tensor.T if reader.is_transposed else tensor
            reader.add(theirs @ change, None)

    def write(self, end: Chunks) -> None:
        """Finish the sub-layer: fit its writing projection, and add its output to the stream.

        Args:
            end: The teacher's stream where the student's next sub-layer begins.
        """
        settings, sub = self.settings, self._sub
        assert sub is not None
        bias = sub.writer.bias is not None
        sums = Sums(self._inputs[0].shape[-1], len(self.spec.hidden), bias=bias, device=self.device)
        size = 0.0
        for inputs, stream, first, last in zip(self._inputs, self.stream, self._start, end, strict=True):
            first, last = self._kept(first), self._kept(last)
            gain = last - first
            left = gain + settings.pull * (first - stream) - self._written(inputs)
            # Every position counts alike, however large its stream is; else the few huge ones would rule.
            counts = last.square().mean(-1).clamp_min(1e-12).reciprocal().flatten()
            left, gain, counts = self._before_norm(inputs, left, gain, counts)
            sums.add(inputs.flatten(0, 1).to(left.dtype), left.flatten(0, 1), counts)
            size += float((gain.square().sum(-1, dtype=torch.float64).flatten() * counts).sum())
        update = sums.solve(settings.write_prior / self.num_tokens)
        if sub.mixes:
            sub.writer.add(update.weight @ sub.writer.weight.to(update.weight.dtype), None)
            weight = update.weight.to(self.stream[0].dtype)
            self._inputs = [inputs + nn.functional.linear(inputs, weight) for inputs in self._inputs]
        else:
            sub.writer.add(update.weight, update.bias)
        self.stream = [chunk + self._written(inputs) for chunk, inputs in zip(self.stream, self._inputs, strict=True)]
        _, number, kind = self.places[len(self.fits)]
        name, size = ("attention", "mlp")[kind], size or 1.0
        self.fits.append(SubLayerFit(number, name, update.before / size, update.after / size))
        self._sub, self._inputs, self._start = None, [], []

    def _written(self, inputs: torch.Tensor) -> torch.Tensor:
        assert self._sub is not None
        with _multiplying(self.settings.bf16, self.device):
            return self._sub.written(inputs)

    def _before_norm(self, inputs: torch.Tensor, left: torch.Tensor, gain: torch.Tensor, counts: torch.Tensor) -> Any:
        """What is left, the gain and the weights of positions, as the writer's own output would have to make them.

        Where a norm stands behind it, its gain is divided by as far as it is not near zero.
        """
        assert self._sub is not None
        with _multiplying(self.settings.bf16, self.device):
            token, channel = self._sub.slope(inputs)
        if isinstance(token, torch.Tensor) and isinstance(channel, torch.Tensor):
            back = channel / (channel.square() + _NEAR_ZERO * channel.square().mean()) / token
            return left * back, gain * back, counts * token.square().flatten()
        return (left, gain, counts) if token == 1 else (left / token, gain / token, counts * token**2)

    def _less(self, theirs: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
        """The teacher's channels minus the student's, where it has them."""
        if self.hidden is None:
            return theirs - mine
        left = theirs.clone()
        left[:, self.hidden] -= mine
        return left

    def _kept(self, chunk: torch.Tensor) -> torch.Tensor:
        return chunk if self.hidden is None else chunk.index_select(-1, self.hidden)

    def finish(self, teacher: _Teacher) -> None:
        """Finish the last sub-layer; fit the final norm's scale to the teacher's final hidden states."""
        self.write(teacher.stream)
        if not self.settings.scale_norm:
            return
        norm, wanted = self.apart.final_norm(), teacher.apart.final_norm()
        family, tied = self.apart.family, self.teacher.structure.tie_word_embeddings
        ratio = embedding_ratio(teacher.apart.model.config, self.apart.model.config, family) if tied else 1.0
        squares = torch.zeros(len(self.spec.hidden), dtype=torch.float64, device=self.device)
        products = squares.clone()
        for mine, theirs in zip(self.stream, teacher.stream, strict=True):
            ours, goal = norm(mine).flatten(0, 1), self._kept(wanted(theirs)).flatten(0, 1) / ratio
            shift = 0 if getattr(norm, "bias", None) is None else norm.bias
            squares += (ours - shift).square().sum(0, dtype=torch.float64)
            products += ((ours - shift) * (goal - shift)).sum(0, dtype=torch.float64)
        held = self.settings.write_prior / self.num_tokens * squares.mean()
        change = ((products + held) / (squares + held)).to(norm.weight.dtype)
        norm.weight.add_(family.norm_offset).mul_(change).sub_(family.norm_offset)


@contextlib.contextmanager
def _threads(most: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that share the cores: models side by side keep them busier than products alone, one after the other."""
    cores = torch.get_num_threads()
    count = min(cores, most)

    def begin() -> None:
        torch.set_grad_enabled(False)
        torch.set_num_threads(cores // count)

    try:
        with ThreadPoolExecutor(count, initializer=begin) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)


def reconstruct(
    state: Mapping[str, torch.Tensor],
    config: Any,
    family: Family,
    students: Sequence[tuple[Any, SubnetSpec]],
    ids: torch.Tensor,
    settings: ReconstructionSettings | None = None,
    on_layer: Callable[[int], None] = lambda done: None,
) -> list[list[SubLayerFit]]:
    """Reconstruct students in place, all along one pass of the teacher.

    Memory beyond the models: per model the residual stream of all tokens and the inputs of one output projection; never
    tokens x vocabulary.

    Args:
        state: The teacher's state dict, in the type to compute in.
        config: The teacher's config.
        family: Its family.
        students: Extracted students, of the same type, each with its spec.
        ids: ``[sequences, length]`` of the teacher's token ids to fit on, which all students keep; at least as many as
            neurons in a layer.
        settings: The defaults if None.
        on_layer: Called with the number of the teacher's layers that are done.

    Returns:
        Per student, the fits of its sub-layers in order.
    """
    settings = settings or ReconstructionSettings()
    with torch.no_grad(), rough_products(settings.bf16), _threads(1 + len(students)) as pool:
        batches = list(ids.split(_BATCH_SEQUENCES))
        teacher = _Teacher(state, config, family, batches, settings.bf16)
        sizes = family.architecture(config)
        walkers = [_Student(model, spec, sizes, family, batches, settings) for model, spec in students]
        for position in range(2 * sizes.num_hidden_layers):
            sub = teacher.arrive(position)
            ahead = pool.submit(teacher.behind, position, sub)
            list(pool.map(lambda walker: walker.step(teacher), [one for one in walkers if one.is_at(position)]))
            teacher.stream = ahead.result()
            if position % 2 == MLP:
                on_layer(position // 2 + 1)
        list(pool.map(lambda walker: walker.finish(teacher), walkers))
    return [walker.fits for walker in walkers]


def _body_flops(architecture: Architecture, sequence_length: int) -> int:
    """FLOPs per token of a forward pass that stops before the output head."""
    head = 2 * architecture.structure.vocab_size * architecture.hidden_size
    return flops_per_token(architecture, sequence_length) - head


def reconstruction_flops(
    teacher: Architecture, students: Sequence[Architecture], tokens: int, sequence_length: int
) -> float:
    """FLOPs of reconstructing students side by side.

    One pass of the teacher for all; per student a pass of its own, the sums of products of every fit, and its solution.

    Args:
        teacher: The teacher's sizes.
        students: The students' sizes.
        tokens: Tokens fitted on.
        sequence_length: Tokens per sequence.
    """
    total = float(tokens) * _body_flops(teacher, sequence_length)
    for student in students:
        hidden, head_dim = student.hidden_size, student.structure.head_dim
        per_token, solving = float(_body_flops(student, sequence_length)), 0.0
        for layer in student.layers:
            for width in (layer.num_attention_heads * head_dim, layer.intermediate_size):
                if width:
                    per_token += square_flops(hidden) + 2 * hidden * teacher.hidden_size
                    per_token += square_flops(width) + 2 * width * hidden
                    solving += width**3 / 3 + 2 * width**2 * hidden
                    solving += hidden**3 / 3 + 2 * hidden**2 * teacher.hidden_size
        total += tokens * per_token + solving
    return total
