"""``--dry-run``: what every point and the whole sweep would cost on a device, without spending anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.config.base import build_section
from slm_ray.config.columns import aligned
from slm_ray.config.errors import ConfigError, UserError
from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.runtime.environment import describe_environment, usable_cpus
from slm_ray.runtime.forecast import Forecast, total
from slm_ray.studies.costs import plan_tasks
from slm_ray.studies.points import Point, Task, all_tasks
from slm_ray.studies.sweep_file import GPU_NAME, MachineSection, SweepFile

# A training step's rate on one core with bf16 matrix instructions (benchmarks/README.md); many times less without.
_CORE_FLOPS = 1.5e11


@dataclass(frozen=True)
class Machine:
    """One device."""

    name: str  # What it is called
    device_flops: float  # Its FLOP/s at most
    mfu: float  # The share of them that training reaches
    price_per_hour: float  # Dollars an hour
    memory: float | None  # Bytes of memory; None where that is not known
    is_gpu: bool  # Whether it is a GPU

    def hours(self, flops: float) -> float:
        """Device-hours of so many FLOPs."""
        return flops / (self.device_flops * self.mfu) / 3600

    def describe(self) -> str:
        """In a line."""
        memory = f", {self.memory / 1e9:.0f} GB" if self.memory else ""
        return (
            f"{self.name}: {self.device_flops:.3g} FLOP/s, of which {self.mfu:.0%} are reached, "
            f"${self.price_per_hour:g} an hour{memory}"
        )


def this_machine() -> Machine:
    """The processors here."""
    cpus = usable_cpus()
    memory = describe_environment().memory_bytes
    return Machine(f"this machine's {cpus} CPUs", _CORE_FLOPS * cpus, 1.0, 0.0, memory, is_gpu=False)


def make_machine(given: Mapping[str, Any], flags: Mapping[str, Any]) -> Machine:
    """The machine of a sweep file's section with the flags over it; this one where neither says anything."""
    said = dict(given) | {name: value for name, value in flags.items() if value is not None}
    if not said:
        return this_machine()
    problems: list[str] = []
    found = build_section(MachineSection, said, "machine", problems)
    if found is None:
        raise ConfigError("the machine", problems)
    name = found.name or ("the device" if "device_flops" in said else GPU_NAME)
    return Machine(name, found.device_flops, found.mfu, found.price_per_hour, found.memory, is_gpu=True)


_HEADER = ("point", "tokens", "FLOPs", "teacher", "search+capture", "memory", "hours", "cost", "disk")


def print_plan(sweep: SweepFile, points: Sequence[Point], machine: Machine) -> None:
    """Print what a sweep would cost."""
    tasks = all_tasks(points)
    costs = forecasts(tasks, on_gpu=machine.is_gpu)
    print("\n".join(plan_lines(sweep, points, tasks, costs, machine)))
    check_memory(points, costs, machine)


def forecasts(tasks: Sequence[Task], *, on_gpu: bool) -> dict[str, Forecast]:
    """Every task's forecast by its name."""
    return {name: plan.forecast for name, plan in plan_tasks(tasks, on_gpu=on_gpu).items()}


def plan_lines(
    sweep: SweepFile, points: Sequence[Point], tasks: Sequence[Task], costs: Mapping[str, Forecast], machine: Machine
) -> list[str]:  # fmt: skip
    """The plan as text: a row per point, and the sum of all runs, each counted once."""
    scale = f" at scale {sweep.scale}" if sweep.scale else ""
    whole = total([costs[task.name] for task in tasks])
    rows: list[tuple[str, ...]] = [_HEADER]
    for point in points:
        cost = total([costs[task.name] for task in point.tasks])
        rows.append(_row(f"{point.number} {_varied(point)}".strip(), cost, machine))
    rows.append(_row("all runs, each once", whole, machine))
    for step in sweep.steps if len(sweep.steps) > 1 else ():
        of_step = [costs[task.name] for task in tasks if task.step == step.name]
        if of_step:
            rows.append(_row(f"  of them {step.name} ({len(of_step)})", total(of_step), machine))
    steps = ", ".join(step.name for step in sweep.steps)
    lines = [f"{sweep.name}{scale}: {len(points)} points, {len(tasks)} runs ({steps})", *aligned(rows), ""]
    lines += [
        f"Hours and cost of {machine.describe()}.",
        "Memory is an estimate for one worker: state, activations of a micro-batch, teacher, process.",
        "FLOPs are of matrix multiplications; evaluations during training are not in them.",
    ]
    lines += [f"Note: {note}." for note in whole.notes]
    return [*lines, "Nothing was downloaded, started or written."]


def _varied(point: Point) -> str:
    text = ", ".join(f"{name}={value}" for name, value in point.values.items())
    return f"{point.group}: {text}" if point.group else text


def _row(title: str, cost: Forecast, machine: Machine) -> tuple[str, ...]:
    hours = machine.hours(cost.flops)
    time = format_seconds(3600 * hours) if hours < 1 else f"{hours:,.1f} h"
    return (
        title, format_count(cost.tokens), f"{cost.flops:.3g}", f"{cost.flops_of('teacher'):.3g}",
        f"{cost.flops_of('search', 'capture'):.3g}",
        format_bytes(cost.memory_bytes), time, f"${hours * machine.price_per_hour:,.2f}",
        format_bytes(cost.disk_bytes),
    )  # fmt: skip


def check_memory(points: Sequence[Point], costs: Mapping[str, Forecast], machine: Machine) -> None:
    """Make sure that every point fits into a device's memory."""
    if machine.memory is None:
        return
    over: list[tuple[Point, Task, float]] = []
    for point in points:
        for task in point.tasks:
            cost = costs[task.name]
            # On a machine of processors, all workers share its memory.
            needed = cost.memory_bytes * (1 if machine.is_gpu or task.stage.name == "search" else cost.workers)
            if needed > machine.memory:
                over.append((point, task, needed))
    if over:
        point, task, needed = over[0]
        names = len({point.number for point, _, _ in over})
        raise UserError(
            f"{names} of {len(points)} points do not fit into the memory: {task.step} of {point.title()} needs "
            f"about {format_bytes(needed)} and {machine.name} has {format_bytes(machine.memory)}: give a "
            "smaller micro-batch, "
            "activation-checkpointing: true, a higher zero stage with more workers, or a smaller model"
        )


def check_before_start(points: Sequence[Point], machine: Machine | None) -> None:
    """The same before a sweep is started, for the machine stated or this one."""
    import torch

    device = machine
    if device is None and torch.cuda.is_available():
        memory = float(torch.cuda.get_device_properties(0).total_memory)
        device = Machine(torch.cuda.get_device_name(0), 1.0, 1.0, 0.0, memory, is_gpu=True)
    device = device or this_machine()
    check_memory(points, forecasts(all_tasks(points), on_gpu=device.is_gpu), device)
