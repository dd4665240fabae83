"""How each row's model is made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import pruned
from benchmarks.peers.options import FIRST_N, MINITRON, OURS, OURS_CUT, RANDOM, SHORTGPT
from benchmarks.peers.study import Spent, Study
from slm_ray.config.errors import UserError
from slm_ray.models.extraction import extract
from slm_ray.models.families import config_architecture
from slm_ray.models.loading import load_student, quiet_transformers
from slm_ray.models.precision import DTYPES
from slm_ray.models.starts import first_n
from slm_ray.records.base import read_record
from slm_ray.records.budget import Budget
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.records.search import FrontMember, SearchResult
from slm_ray.records.subnet import SubnetSpec
from slm_ray.search.genome import Genome
from slm_ray.search.space import NATURAL, load_space


@dataclass
class Start:
    """A model before training.

    Attributes:
        model: The causal LM, fp32.
        flops_per_token: Of its forward pass.
        spent: What choosing it cost.
        note: What is worth knowing of it, for the record.
    """

    model: Any
    flops_per_token: int
    spent: Spent
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> int:
        """Its parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def cut(study: Study, spec: SubnetSpec, spent: Spent, note: dict[str, Any] | None = None) -> Start:
    """A sub-network of the teacher as a start, its weights as they are."""
    teacher, sizes = study.teacher, spec.architecture_in(study.architecture)
    with quiet_transformers():
        model = extract(teacher.state(), teacher.config(), teacher.family(), spec, dtype=torch.float32)
    shape = {"hidden": sizes.hidden_size, "layers": sizes.num_hidden_layers}
    return Start(model, flops_per_token(sizes, study.options.sequence_length), spent, shape | (note or {}))


def _minitron(study: Study) -> Start:
    spent = Spent()
    found = study.activations(spent)
    with spent.timed():
        shapes = list(pruned.shapes_near(study.architecture, study.limit))
        if not shapes:
            raise UserError(f"no uniform shape lies just within {study.limit:,} parameters: give another --share")
        specs = [pruned.uniform_cut(study.architecture, found, *shape) for shape in shapes]
        spec, tokens = pruned.pick(study.runner, specs, study.deciding)
    sizes = spec.architecture_in(study.architecture)
    spent.add("choice of a shape", float(tokens) * flops_per_token(sizes, study.options.sequence_length))
    layer = sizes.layers[0]
    return cut(study, spec, spent, {
        "key_value_heads": layer.num_key_value_heads, "neurons": layer.intermediate_size, "shapes": len(shapes),
    })  # fmt: skip


def _shortgpt(study: Study) -> Start:
    spent = Spent()
    spec = pruned.fewer_layers(study.architecture, study.activations(spent).influence, study.limit)
    return cut(study, spec, spent, {"sources": [layer.source for layer in spec.layers]})


def _random(study: Study) -> Start:
    """Random heads, neurons and layers of the teacher at the budget's upper end; nothing is measured."""
    genome = Genome(load_space("fine").with_order(NATURAL), study.architecture)
    budget = Budget("params", 0, study.limit)
    rng = np.random.default_rng(study.options.seed)
    spec = genome.decode(genome.random(rng, budget, study.options.sequence_length, study.limit))
    return cut(study, spec, Spent())


def _first_n(study: Study) -> Start:
    spec = first_n(study.architecture, Budget("params", 0, study.limit), study.options.sequence_length)
    return cut(study, spec, Spent())


def search_run(study: Study) -> Path:
    """The finished search that our winner is of; one with default options is run where none was given.

    Only the first winner is asked for, for the others would be fitted in vain.

    Raises:
        UserError: The search failed, or the one that was given is not finished.
    """
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


def _spent_on_search(run: Path) -> Spent:
    spent = read_record(run, SearchResult).spent
    found = Spent(float(sum(spent.seconds.values())), None)
    found.add("search and fits", spent.flops)
    return found


def _member(study: Study, run: Path) -> FrontMember:
    """The search's best model within the budget: its first winner, or of a wider budget the front's best by its text.

    Raises:
        UserError: The search has none.
    """
    inside = [member for member in read_record(run, SearchResult).front if member.params <= study.limit]
    if not inside:
        raise UserError(f"the front of {run} has no model of at most {study.limit:,} parameters: give another --run")
    return min(inside, key=lambda member: (member.winner != 0, member.calibration_perplexity))


def _spec_of(study: Study, run: Path, trial: int) -> SubnetSpec:
    """What a candidate of a search keeps."""
    from slm_ray.search.candidates import FinishedSearch

    return FinishedSearch.open(run).load([trial], (), study.console, 0).specs[trial]


def _fitted(study: Study, run: Path, member: FrontMember, spent: Spent) -> tuple[Any, bool]:
    """A member of the front that was not exported, its weights fitted as those of winners are."""
    from slm_ray.search.candidates import FinishedSearch
    from slm_ray.search.inputs import prepare_inputs
    from slm_ray.search.reconstruction import Member, Reconstructor

    spec = _spec_of(study, run, member.trial)
    config = FinishedSearch.open(run).config.replace(reconstruct="winners")
    members = [Member(member.trial, spec, member.params, True)]
    found: list[tuple[Any, bool]] = []
    with spent.timed():
        work = Reconstructor(prepare_inputs(config, study.console), study.out / "fits", torch.float32)
        work.run(members, lambda _trial, student, one: found.append((student.float(), one.kept)), lambda _trial: False)
    spent.add("fits", work.spent(members).flops)
    return found[0]


def _ours(study: Study) -> Start:
    run = search_run(study)
    member, spent = _member(study, run), _spent_on_search(run)
    if member.winner is None:
        model, is_fitted = _fitted(study, run, member, spent)
    else:
        model, is_fitted = load_student(run / "winners" / str(member.winner), "our winner"), member.fitted is not None
    sizes = config_architecture(model.config)
    assert sizes is not None
    note = {"hidden": sizes.hidden_size, "layers": sizes.num_hidden_layers, "weights_fitted": is_fitted,
            "candidates": read_record(run, SearchResult).spent.candidates}  # fmt: skip
    return Start(model, flops_per_token(sizes, study.options.sequence_length), spent, note)


def _ours_cut(study: Study) -> Start:
    """Our model with the teacher's own weights: what its fits are worth."""
    run = search_run(study)
    return cut(study, _spec_of(study, run, _member(study, run).trial), _spent_on_search(run))


MAKERS: dict[str, Callable[[Study], Start]] = {
    OURS: _ours, OURS_CUT: _ours_cut, MINITRON: _minitron, SHORTGPT: _shortgpt, RANDOM: _random,
    FIRST_N: _first_n,
}  # fmt: skip


def make_start(study: Study, name: str) -> Start:
    """Make a row's model, and make sure that it is within the budget.

    Raises:
        UserError: It cannot be made.
    """
    start = MAKERS[name](study)
    if start.params > study.limit:
        share = start.params / num_params(study.architecture)
        raise UserError(
            f"{name} has {start.params:,} parameters ({share:.1%} of the teacher's), more than the {study.limit:,} of "
            "--share: give a search of that budget with --run"
        )
    return start


__all__ = ["DTYPES", "MAKERS", "Start", "cut", "make_start", "search_run"]
