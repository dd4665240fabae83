"""``--dry-run``: what a search would do and what it would cost, with nothing downloaded, started or loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config.columns import aligned
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.data import load_corpus
from slm_ray.data.bundled import BUNDLED
from slm_ray.data.load import is_on_hub
from slm_ray.models.precision import measure_precision
from slm_ray.models.teacher_sizes import TeacherSizes, look_up_teacher
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import QUANTITIES, Budget, measure_cost
from slm_ray.records.cost import num_params
from slm_ray.runtime.environment import describe_environment, usable_cpus
from slm_ray.runtime.hardware import device_of
from slm_ray.runtime.runfolder import CONFIG_FILE
from slm_ray.runtime.session import default_workers
from slm_ray.search import estimates
from slm_ray.search.config import DEFAULT_BUDGET, SearchConfig
from slm_ray.search.genome import Genome
from slm_ray.search.inputs import check_sequence_length, search_workers
from slm_ray.search.space import NATURAL, SearchSpace, load_space

_UNITS = {"params": "parameters", "flops": "FLOPs/token", "kv_bytes": "KV-cache bytes/token"}


@dataclass(frozen=True)
class Plan:
    """A search that can be started: everything about it that its sizes decide.

    Attributes:
        config: The options.
        space: The search space, its order replaced where the options say so.
        teacher: The teacher's sizes.
        budget: The hard range.
        reach: The least and the greatest cost the space can express, in the budget's quantity.
        num_genes: Choices that make up a candidate.
        candidate: The sizes of a candidate in the middle of the budget.
        precision: ``fp32`` or ``bf16``.
        device: ``cpu`` or ``cuda``.
        workers: Trials at once.
    """

    config: SearchConfig
    space: SearchSpace
    teacher: Architecture
    budget: Budget
    reach: tuple[int, int]
    num_genes: int
    candidate: Architecture
    precision: str
    device: str
    workers: int


def make_plan(config: SearchConfig, space: SearchSpace, teacher: Architecture) -> Plan:
    """Work out a search from its options and its teacher's sizes.

    Raises:
        UserError: The sequence is too long for the teacher, or the space cannot meet the budget.
    """
    check_sequence_length(config, teacher)
    budget, length = config.budget(teacher), config.sequence_length
    genome = Genome(space.with_order(NATURAL), teacher)  # what a space can reach does not depend on the order
    genome.check_budget(budget, length)
    reach = genome.reach(budget.quantity, length)
    middle = (max(budget.low, reach[0]) + min(budget.high, reach[1])) // 2
    candidate = genome.architecture(genome.ranked(middle, budget, length))
    workers = config.workers or search_workers(config)
    device = device_of(config.device, config.address)
    precision = measure_precision(config.precision, device)
    return Plan(config, space, teacher, budget, reach, genome.num_genes, candidate, precision, device, workers)


def print_plan(config: SearchConfig) -> None:
    """Print what a search would do and what it would cost.

    Args:
        config: The options, checked.

    Raises:
        UserError: A real run would refuse its teacher, text, space, budget or run folder.
    """
    space = load_space(config.space)
    if config.order:
        space = space.with_order(config.order)
    if config.out:
        check_run_folder(Path(config.out))
    sizes = look_up_teacher(config.teacher)
    plan = None if sizes.architecture is None else make_plan(config, space, sizes.architecture)
    texts = [check_text(name, config.text_field) for name in (config.data, config.other_data) if name]
    sections = [("Options", option_rows(config, plan)), ("Teacher", teacher_rows(sizes, config.sequence_length))]
    sections += [("Text", texts)]
    if plan is None:
        sections += [("Search", [f"space {space.name}; the rest is known once the teacher's sizes are"])]
    else:
        rate = estimates.multiplication_rate(plan.teacher, plan.precision, config.threads)
        sections += [("Search", search_rows(plan)), ("Work, expected", work_rows(plan, rate))]
        sections += [("Machine", machine_rows(plan, sizes.weight_bytes))]
    for title, rows in sections:
        print(title)
        print("".join(f"  {row}\n" for row in rows))
    print("Nothing was downloaded, started or written.")


def option_rows(config: SearchConfig, plan: Plan | None) -> list[str]:
    """The resolved options."""
    values = config.to_json()
    if plan is not None:
        values |= {"workers": plan.workers, "precision": plan.precision, "order": plan.space.order}
    if not any(values[name] for name in QUANTITIES):
        values["params"] = DEFAULT_BUDGET
    values["out"] = values["out"] or f"runs/{Path(config.space).stem}-TIME"
    values["screen"] = config.screen_factor()
    shown = {name: value for name, value in values.items() if value is not None}
    width = max(map(len, shown))
    return [f"{name.ljust(width)}  {value}" for name, value in shown.items()]


def teacher_rows(sizes: TeacherSizes, sequence_length: int) -> list[str]:
    """The teacher's sizes and exact costs."""
    architecture = sizes.architecture
    if architecture is None:
        return [f"{sizes.name}: {sizes.note}"]
    layer, structure = architecture.layers[0], architecture.structure
    costs = {name: measure_cost(architecture, name, sequence_length) for name in QUANTITIES}
    heads = f"{layer.num_attention_heads} heads, {layer.num_key_value_heads} key-value"
    return [
        f"{sizes.name}: {structure.family}, {sizes.note}",
        f"{architecture.num_hidden_layers} layers · width {architecture.hidden_size} · {heads} · "
        f"{layer.intermediate_size} neurons · vocabulary {structure.vocab_size:,}",
        " · ".join(f"{costs[name]:,} {unit}" for name, unit in _UNITS.items()),
    ]


def search_rows(plan: Plan) -> list[str]:
    """What is searched, and for what."""
    config, unit, (low, high) = plan.config, _UNITS[plan.budget.quantity], plan.reach
    stages = ", ".join(f"{end:,}" for end in config.stage_tokens())
    screen = f", picked of {config.screen_factor()} times as many offspring" if config.screen_factor() > 1 else ""
    race = f"; beaten ones stop after {stages} tokens" if stages else ""
    return [
        f"space {plan.space.name}: {plan.num_genes} choices, reaching {low:,} to {high:,} {unit}",
        f"budget: {plan.budget.low:,} to {plan.budget.high:,} {unit}",
        f"candidates: {config.trials} by {config.algorithm}, {config.population} a generation, on {config.objectives}"
        + screen,
        f"measured on {config.calibration_tokens:,} calibration tokens in sequences of {config.sequence_length}{race}",
        f"winners: up to {config.winners} models"
        + (f", of {config.finalists} trained on {config.finalist_tokens} tokens each" if config.finalists else ""),
        *([_audit_row(config)] if config.audit else []),
        *([_reconstruction_row(config)] if config.reconstruct != "none" else []),
    ]


def _audit_row(config: SearchConfig) -> str:
    return f"audit: up to {config.audit} candidates measured again, to see how far shortcuts can be trusted"


def _reconstruction_row(config: SearchConfig) -> str:
    whose = "the winners" if config.reconstruct == "winners" else "the whole front"
    return f"weights of {whose} fitted to the teacher's layers on {config.reconstruct_tokens:,} train tokens"


def work_rows(plan: Plan, rate: float) -> list[str]:
    """Tokens, FLOPs and time of every phase, as a table.

    Args:
        plan: The search.
        rate: FLOPs per second of one worker at a plain matrix multiplication.
    """
    phases = estimates.estimate_phases(plan.config, plan.space, plan.teacher, plan.candidate)
    at_once = plan.workers if plan.config.address else min(plan.workers, default_workers(plan.config.threads))
    slowdown = estimates.SLOWDOWN[plan.precision]
    seconds = [phase.seconds(rate * at_once, slowdown) for phase in phases]
    rows = [("phase", "tokens", "at most", "FLOPs", "time")]
    for phase, time in zip(phases, seconds, strict=True):
        counts = (f"{phase.tokens:,}", f"{phase.most_tokens:,}", format_count(phase.flops))
        shown = counts if phase.tokens else ("–", "–", "–")
        rows.append((phase.name, *shown, "–" if not time else f"~{format_seconds(time)}"))
    tokens, flops = sum(phase.tokens for phase in phases), sum(phase.flops for phase in phases)
    rows.append(("together", f"{tokens:,}", "", format_count(flops), f"~{format_seconds(sum(seconds))}"))
    on_gpu = ["Candidates and unit scores are computed on GPUs, which is faster than these estimates say."]
    return [
        *aligned(rows),
        f"Times are estimates for an idle machine: {at_once} × {plan.config.threads} threads, each at "
        f"{rate / plan.config.threads / 1e9:,.0f} GFLOP/s",
        f"(measured here, {plan.precision}), and passes {slowdown:g} × slower than their multiplications.",
        "A teacher's first run also fetches and converts it (20 s for the default one); unit scores are kept.",
        *(on_gpu if plan.device == "cuda" else []),
    ]


def machine_rows(plan: Plan, weight_bytes: int) -> list[str]:
    """Processors, memory and disk."""
    config = plan.config
    where = f"the Ray cluster at {config.address}" if config.address else f"{usable_cpus()} usable CPUs here"
    needed = estimates.memory_bytes(config, plan.teacher, plan.precision, plan.workers)
    there = describe_environment().memory_bytes
    of = f" of {format_bytes(there)}" if there and not config.address else ""
    winners = config.winners * num_params(plan.candidate) * weight_bytes
    cache = estimates.cache_bytes(plan.teacher, weight_bytes, plan.precision)
    rows = [
        f"workers: {plan.workers} × {config.threads} thread{'s' if config.threads > 1 else ''} on {where}",
        f"memory: about {format_bytes(needed)}{of}; the teacher is in it once, whatever the number of workers",
        f"disk: about {format_bytes(winners)} of winners, and {format_bytes(cache)} in the cache, once",
    ]
    if not config.address and plan.workers * config.threads > usable_cpus():
        rows.append(f"note: {plan.workers} × {config.threads} threads are more than the CPUs there are")
    if of and there and needed > there:
        rows.append("note: that is more memory than there is; fewer --workers need less")
    return rows


def check_text(name: str, text_field: str) -> str:
    """Check that there is such text, as far as that can be seen without a network, and say where it comes from.

    Raises:
        UserError: There is none, it is empty, or its first record lacks the text field.
    """
    if name in BUNDLED:
        return f"{name}: made from this Python's own documentation"
    if is_on_hub(name):
        return f"{name}: on the hub, not looked at"
    load_corpus(name, text_field)
    return f"{name}: local; its first document is readable"


def check_run_folder(path: Path) -> None:
    """Check that a new run could be put in a folder, without making it.

    Raises:
        UserError: It holds something already, or cannot be written.
    """
    if (path / CONFIG_FILE).exists():
        raise UserError(f"{path} already holds a run: continue it with --resume {path}, or choose another --out")
    if path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise UserError(f"{path} is not empty and holds no run: choose another --out")
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"the run folder {path} cannot be made: {nearest} is no folder that you can write to")
