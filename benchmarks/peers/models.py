"""How each row's model is made, each written from its paper.

Minitron (arXiv 2407.14679): a neuron, a head or a residual channel matters as much as the size of its output, averaged
over a sample's tokens and joined over samples by the root of squares; uniform shapes near the budget are cut by that,
and one is picked, here by the loss on calibration text before any training. ShortGPT (arXiv 2403.03853) drops the
layers that turn what passes through them least, by one minus the cosine.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks.peers.study import Spent, Study
from slm_ray.config.errors import UserError
from slm_ray.models.extraction import extract, layers_of
from slm_ray.models.families import Family, config_architecture
from slm_ray.models.loading import load_student, quiet_transformers
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.starts import first_n
from slm_ray.records.architecture import Architecture
from slm_ray.records.base import read_record
from slm_ray.records.budget import Budget
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.records.search import SearchResult
from slm_ray.records.subnet import LayerUnits, SubnetSpec, full_subnet
from slm_ray.search.genome import Genome
from slm_ray.search.space import NATURAL, load_space

Array = NDArray[np.float64]
NEAR = 0.95  # shapes are taken from this share of the budget up to all of it, as Minitron's are from within 5%
DEPTH_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
WIDTH_STEP, NEURON_STEP, BATCH = 64, 32, 4


@dataclass(frozen=True)
class Activations:
    """Importance: ``[hidden]``, ``[layers, key-value heads]``, ``[layers, neurons]`` and influence ``[layers]``."""

    hidden: Array
    kv_heads: Array
    neurons: Array
    influence: Array


class _Sums:
    """Adds up, sample by sample, what hooks see."""

    def __init__(self, teacher: Architecture) -> None:
        shape, count = teacher.layers[0], teacher.num_hidden_layers
        self.head_dim, self.groups = teacher.structure.head_dim, shape.num_key_value_heads
        self.hidden = np.zeros(teacher.hidden_size)
        self.heads = np.zeros((count, shape.num_attention_heads))
        self.neurons = np.zeros((count, shape.intermediate_size))
        self.influence, self.tokens = np.zeros(count), 0

    def watch(self, base: Any, family: Family) -> None:
        """Hook a model that is about to run."""
        for number, layer in enumerate(layers_of(base, family)):
            attention, mlp = layer.get_submodule(family.attention.output), layer.get_submodule(family.mlp.output)
            attention.register_forward_pre_hook(lambda _m, x, n=number: self._heads(n, x[0]))
            mlp.register_forward_pre_hook(lambda _m, x, n=number: self._add(self.neurons[n], x[0].abs()))
            layer.register_forward_hook(lambda _m, x, y, n=number: self._layer(n, x[0], y))
        for name, module in base.named_modules():
            if name.rsplit(".", 1)[-1] in ("input_layernorm", "post_attention_layernorm", "norm"):
                module.register_forward_hook(lambda _m, _x, y: self._add(self.hidden, y.abs()))

    @staticmethod
    def _add(total: Array, sizes: torch.Tensor) -> None:
        """Mean over a sample's tokens, squared, summed over samples; sizes ``[samples, tokens, units]``."""
        total += sizes.float().mean(1).square().sum(0).double().numpy()

    def _heads(self, number: int, x: torch.Tensor) -> None:
        self._add(self.heads[number], x.float().unflatten(-1, (-1, self.head_dim)).norm(dim=-1))

    def _layer(self, number: int, before: torch.Tensor, after: torch.Tensor) -> None:
        cosine = functional.cosine_similarity(before.float(), after.float(), dim=-1)
        self.influence[number] += float((1 - cosine).sum())
        self.tokens += cosine.numel() if number == 0 else 0


def gather_activations(runner: SubnetRunner, ids: torch.Tensor, batch: int = 16) -> Activations:
    """Importance of a teacher's units in one forward pass over ``ids`` ``[samples, length]``."""
    sums, full = _Sums(runner.teacher), full_subnet(runner.teacher)
    for part in ids.split(batch):
        runner.hidden_states(full, part, watch=lambda base: sums.watch(base, runner.family))
    groups = np.sqrt(sums.heads.reshape(len(sums.heads), sums.groups, -1).sum(-1))
    return Activations(np.sqrt(sums.hidden), groups, np.sqrt(sums.neurons), sums.influence / max(1, sums.tokens))


def best(scores: Array, count: int) -> tuple[int, ...]:
    """The units of highest score, ascending; of equal ones the first."""
    return tuple(sorted(int(unit) for unit in np.argsort(-scores, kind="stable")[:count]))


def uniform_cut(
    teacher: Architecture, found: Activations, hidden: int, layers: int, groups: int, neurons: int
) -> SubnetSpec:
    """The most important residual channels, layers, key-value heads and neurons, as many in one layer as in another."""
    kept = []
    for layer in best(found.influence, layers):
        shape = teacher.layers[layer]
        per_group = shape.num_attention_heads // shape.num_key_value_heads
        heads = best(found.kv_heads[layer], groups)
        queries = tuple(tuple(range(head * per_group, (head + 1) * per_group)) for head in heads)
        kept.append(LayerUnits(layer, heads, queries, best(found.neurons[layer], neurons)))
    return SubnetSpec(best(found.hidden, hidden), tuple(kept))


def shapes_near(teacher: Architecture, limit: int) -> Iterator[tuple[int, int, int, int]]:
    """Uniform shapes just within a number of parameters: hidden, layers, key-value heads, neurons."""
    whole, step = teacher.layers[0], min(WIDTH_STEP, max(1, teacher.hidden_size // 8))
    neuron_step = min(NEURON_STEP, max(1, whole.intermediate_size // 8))
    per_group = whole.num_attention_heads // whole.num_key_value_heads
    widths = range(teacher.hidden_size, teacher.hidden_size // 2 - 1, -step)
    depths = sorted({max(1, round(share * teacher.num_hidden_layers)) for share in DEPTH_SHARES}, reverse=True)
    for hidden, layers, groups in itertools.product(widths, depths, range(whole.num_key_value_heads, 0, -1)):
        for neurons in range(whole.intermediate_size, 0, -neuron_step):
            layer = type(whole)(groups * per_group, groups, neurons)
            size = num_params(Architecture(teacher.structure, hidden, (layer,) * layers))
            if size <= limit:
                if size >= NEAR * limit:
                    yield hidden, layers, groups, neurons
                break


def mean_loss(runner: SubnetRunner, spec: SubnetSpec, ids: torch.Tensor) -> float:
    """Mean loss of a sub-network in nats per token; ids ``[sequences, length]``."""
    total = sum(float(runner.token_losses(spec, part).double().sum()) for part in ids.split(BATCH))
    return total / (len(ids) * (ids.shape[1] - 1))


def pick(runner: SubnetRunner, specs: Sequence[SubnetSpec], ids: torch.Tensor) -> tuple[SubnetSpec, int]:
    """The sub-network of the lowest loss, and the tokens read: all on a quarter of the text, the best eighth on all."""
    some = ids[: max(1, len(ids) // 4)]
    first = sorted(range(len(specs)), key=lambda number: mean_loss(runner, specs[number], some))
    left = first[: max(2, len(specs) // 8)]
    chosen = min(left, key=lambda number: mean_loss(runner, specs[number], ids))
    return specs[chosen], len(specs) * some.numel() + len(left) * ids.numel()


def fewer_layers(teacher: Architecture, influence: Array, limit: int) -> SubnetSpec:
    """The whole layers of most influence, as many as a number of parameters allows."""
    whole = full_subnet(teacher)
    for count in range(teacher.num_hidden_layers, 0, -1):
        spec = SubnetSpec(whole.hidden, tuple(whole.layers[layer] for layer in best(influence, count)))
        if num_params(spec.architecture_in(teacher)) <= limit:
            return spec
    raise UserError(f"not one layer fits {limit:,} parameters: give a larger --share")


def _activations(study: Study, spent: Spent) -> Activations:
    options = study.options
    ids = study.train_ids(options.calibration_samples * options.calibration_length, options.calibration_length)
    with spent.timed():
        found = gather_activations(study.runner, ids, max(1, 2048 // options.calibration_length))
    spent.flops += ids.numel() * float(flops_per_token(study.architecture, options.calibration_length))
    return found


def _minitron(study: Study, spent: Spent) -> SubnetSpec:
    found = _activations(study, spent)
    with spent.timed():
        specs = [uniform_cut(study.architecture, found, *one) for one in shapes_near(study.architecture, study.limit)]
        if not specs:
            raise UserError(f"no uniform shape lies just within {study.limit:,} parameters: give another --share")
        spec, tokens = pick(study.runner, specs, study.deciding_ids)
    sizes = spec.architecture_in(study.architecture)
    spent.flops += float(tokens) * flops_per_token(sizes, study.options.sequence_length)
    return spec


def _shortgpt(study: Study, spent: Spent) -> SubnetSpec:
    return fewer_layers(study.architecture, _activations(study, spent).influence, study.limit)


def _random(study: Study, spent: Spent) -> SubnetSpec:
    """Random heads, neurons and layers of the teacher at the budget's upper end; nothing is measured."""
    genome = Genome(load_space("fine").with_order(NATURAL), study.architecture)
    rng, budget = np.random.default_rng(study.options.seed), Budget("params", 0, study.limit)
    return genome.decode(genome.random(rng, budget, study.options.sequence_length, study.limit))


def _first_n(study: Study, spent: Spent) -> SubnetSpec:
    return first_n(study.architecture, Budget("params", 0, study.limit), study.options.sequence_length)


CUTS: dict[str, Callable[[Study, Spent], SubnetSpec]] = {
    "minitron": _minitron, "shortgpt": _shortgpt, "random": _random, "first-n": _first_n,
}  # fmt: skip


def search_run(study: Study) -> Path:
    """The finished search that our winner is of; one with default options is run where none was given."""
    options = study.options
    run = options.run or options.out / "search"
    if (run / "result.json").is_file():
        return run
    if options.run is not None:
        raise UserError(f"--run {run} holds no finished search: give a folder with a result.json")
    command = [sys.executable, "-m", "slm_ray.search"]
    if (run / "config.json").is_file():
        command += ["--resume", str(run)]
    else:
        command += ["--teacher", options.teacher, "--data", options.data, "--params", str(options.share)]
        command += ["--winners", "1", "--workers", "0", "--threads", str(options.threads), "--out", str(run)]
        command += ["--trials", str(options.search_trials)] if options.search_trials else []
    if subprocess.run(command).returncode:
        raise UserError(f"the search in {run} failed: see its run.log; the same command goes on with it")
    return run


def make_model(study: Study, name: str) -> tuple[Any, Spent, int]:
    """A row's model in fp32 and within the budget, what choosing it cost, and its FLOPs per token."""
    spent = Spent()
    if name in CUTS:
        spec, teacher = CUTS[name](study, spent), study.teacher
        with quiet_transformers():
            model = extract(teacher.state(), teacher.config(), teacher.family(), spec, dtype=torch.float32)
        sizes = spec.architecture_in(study.architecture)
    else:
        run = search_run(study)
        searched = read_record(run, SearchResult).spent
        spent = Spent(float(sum(searched.seconds.values())), searched.flops)
        model = load_student(run / "winners" / "0", "our winner")
        found = config_architecture(model.config)
        assert found is not None
        sizes = found
    params = sum(parameter.numel() for parameter in model.parameters())
    if params > study.limit:
        raise UserError(
            f"{name} has {params:,} parameters, more than the {study.limit:,} of --share: give a search of that budget "
            "with --run"
        )
    return model, spent, flops_per_token(sizes, study.options.sequence_length)
