"""``--dry-run``: what a search would do and what it would cost, with nothing downloaded, started or loaded."""

from __future__ import annotations

import os
from pathlib import Path

from slm_ray.config.base import flatten
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_bytes
from slm_ray.data.blend import parse_blend
from slm_ray.data.bundled import BUNDLED
from slm_ray.data.load import BY_TEACHER, is_on_hub, load_corpus
from slm_ray.models.precision import export_dtype, measure_precision
from slm_ray.models.teacher_sizes import TeacherSizes, look_up_teacher
from slm_ray.records.budget import QUANTITIES, measure_cost
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.forecast import SLOWDOWN
from slm_ray.runtime.hardware import device_of
from slm_ray.runtime.runfolder import CONFIG_FILE
from slm_ray.search import estimates
from slm_ray.search.config import SearchConfig
from slm_ray.search.estimates import Sizes
from slm_ray.search.inputs import search_workers, space_of
from slm_ray.search.space import SearchSpace


def plan_text(config: SearchConfig) -> str:
    """What a search would do and what it would cost."""
    space = space_of(config)
    if config.machine.out:
        check_run_folder(Path(config.machine.out))
    known = look_up_teacher(config.space.teacher)
    sizes = None if known.architecture is None else estimates.search_sizes(config, space, known.architecture)
    names = (config.data.data, config.measure.other_data)
    texts = [check_text(one, config.data.text_field) for name in names if name for one in parse_blend(name) or [name]]
    device = device_of(config.machine.device, config.machine.address)
    precision = measure_precision(config.measure.precision, device)
    sections = [
        ("Options", option_rows(config, space, None if sizes is None else precision)),
        ("Teacher", teacher_rows(known, config.length)),
        ("Text", texts),
    ]
    if sizes is None:
        sections.append(("Search", [f"space {space.name}; the rest is known once the teacher's sizes are"]))
    else:
        forecast = estimates.forecast_search(config, space, sizes, precision, known.dtype)
        cache = estimates.cache_bytes(sizes.teacher, known.weight_bytes, precision)
        sections += [
            ("Search", search_rows(config, space, sizes)),
            ("Work, expected", work_rows(config, forecast, precision, device)),
            ("Machine", machine_rows(config, forecast, cache, export_dtype(config.winners.dtype, known.dtype))),
        ]
    blocks = ["".join([f"{title}\n", *(f"  {row}\n" for row in rows)]) for title, rows in sections]
    return "\n".join([*blocks, "Nothing was downloaded, started or written."])


def option_rows(config: SearchConfig, space: SearchSpace, precision: str | None) -> list[str]:
    """The resolved options."""
    values = flatten(config)
    if precision is not None:
        values |= {"workers": search_workers(config), "precision": precision, "order": space.order}
    quantity, text = config.budget.given
    values |= {quantity: text, "screen": config.plan.screen_factor}
    values["out"] = values["out"] or f"runs/{Path(config.space.space).stem}-TIME"
    shown = {name: value for name, value in values.items() if value is not None}
    width = max(map(len, shown))
    return [f"{name.ljust(width)}  {value}" for name, value in shown.items()]


def teacher_rows(known: TeacherSizes, sequence_length: int) -> list[str]:
    """The teacher's sizes and exact costs."""
    architecture = known.architecture
    if architecture is None:
        return [f"{known.name}: {known.note}"]
    layer, structure = architecture.layers[0], architecture.structure
    heads = f"{layer.num_attention_heads} heads, {layer.num_key_value_heads} key-value"
    costs = [f"{measure_cost(architecture, name, sequence_length):,} {unit}" for name, unit in QUANTITIES.items()]
    return [
        f"{known.name}: {structure.family}, {known.note}",
        f"{architecture.num_hidden_layers} layers · width {architecture.hidden_size} · {heads} · "
        f"{layer.intermediate_size} {structure.mlp_unit} · vocabulary {structure.vocab_size:,}",
        " · ".join(costs),
    ]


def search_rows(config: SearchConfig, space: SearchSpace, sizes: Sizes) -> list[str]:
    """What is searched, and for what."""
    plan, wanted, budget = config.plan, config.winners, sizes.budget
    unit, (low, high) = QUANTITIES[budget.quantity], sizes.reach
    stages = ", ".join(f"{end:,}" for end in config.measure.stage_tokens)
    screen = f", picked of {plan.screen_factor} times as many offspring" if plan.screen_factor > 1 else ""
    race = f"; beaten ones stop after {stages} tokens" if stages else ""
    rows = [
        f"space {space.name}: {sizes.num_genes} choices, reaching {low:,} to {high:,} {unit}",
        *([f"note: {warning}"] if (warning := space.width_warning()) else []),
        f"budget: {budget.low:,} to {budget.high:,} {unit}",
        f"candidates: {plan.trials} by {plan.algorithm}, {plan.population} a generation, on {plan.objectives}{screen}",
        f"measured on {config.measure.calibration_tokens:,} calibration tokens in sequences of {config.length}{race}",
        f"winners: up to {wanted.winners} models"
        + (f", of {wanted.finalists} trained on {wanted.finalist_tokens:,} tokens each" if wanted.finalists else ""),
    ]
    if config.reconstruction.reconstruct != "none":
        whose = "the winners" if config.reconstruction.reconstruct == "winners" else "the whole front"
        tokens = config.reconstruction.reconstruct_tokens
        rows.append(f"weights of {whose} fitted to the teacher's layers on {tokens:,} tokens")
    return rows


def work_rows(config: SearchConfig, forecast: estimates.Forecast, precision: str, device: str) -> list[str]:
    """Tokens, FLOPs and time of every phase, as a table."""
    threads = max(1, forecast.workers) * config.machine.threads
    rate = estimates.machine_rate(config, precision)
    on_gpu = "Candidates and unit scores are computed on GPUs, which is faster than these estimates say."
    return [
        *forecast.table(rate),
        f"Times are estimates for an idle machine: {threads} threads at {rate / 1e9:,.0f} GFLOP/s in all (measured "
        f"here, {precision}), and passes up to {SLOWDOWN[precision]:g} × slower than their multiplications.",
        "A teacher's first run also fetches and converts it (20 s for the default one); unit scores are kept.",
        *([on_gpu] if device == "cuda" else []),
    ]


def machine_rows(config: SearchConfig, forecast: estimates.Forecast, cache_bytes: int, dtype: str) -> list[str]:
    """Processors, memory and disk."""
    machine, workers = config.machine, forecast.workers
    where = f"the Ray cluster at {machine.address}" if machine.address else f"{usable_cpus()} usable CPUs here"
    threads = f"{machine.threads} thread{'s' if machine.threads > 1 else ''}"
    fix = "fewer --workers need less" if workers > 1 else "a shorter --sequence-length or a smaller teacher needs less"
    rows = [
        f"workers: {workers} × {threads} on {where}" if workers else f"in this process, with {threads}",
        *forecast.memory_lines(fix, here=not machine.address),
        f"disk: about {format_bytes(forecast.disk_bytes)} of winners in {dtype}, and "
        f"{format_bytes(cache_bytes)} in the cache, once",
    ]
    if not machine.address and workers * machine.threads > usable_cpus():
        rows.append(f"note: {workers} × {machine.threads} threads are more than the CPUs there are")
    return rows


def check_text(name: str, text_field: str) -> str:
    """Check that there is such text, as far as that can be seen without a network, and say where it comes from."""
    if name in BUNDLED:
        return f"{name}: made from this Python's own documentation"
    if name == BY_TEACHER and not Path(name).exists():
        return f"{name}: written by the teacher when the search begins"
    if is_on_hub(name):
        return f"{name}: on the hub, not looked at"
    load_corpus(name, text_field)
    return f"{name}: local; its first document is readable"


def check_run_folder(path: Path) -> None:
    """Check that a new run could be put in a folder, without making it."""
    if (path / CONFIG_FILE).exists():
        raise UserError(f"{path} already holds a run: continue it with --resume {path}, or choose another --out")
    if path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise UserError(f"{path} is not empty and holds no run: choose another --out")
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"the run folder {path} cannot be made: {nearest} is not a folder that you can write to")
