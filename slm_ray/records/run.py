"""The records every run folder begins with: what it was started with, and on what."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from slm_ray.config.errors import UserError
from slm_ray.records.base import Record, find_record, read_record, write_record


class RunRecord(Record):
    """What a run was started with."""

    FILE: ClassVar[str] = "config.json"
    stage: str  # The stage's name, such as ``search``
    command: str  # The command as it was given, quoted for a shell
    options: dict[str, Any]  # Every option by name, resolved


def run_of(stage: str, path: Path) -> RunRecord:
    """What a run of a command was started with.

    ``stage``: The command whose run it must be.
    """
    record = read_record(path, RunRecord)
    if record.stage != stage:
        raise UserError(
            f"{path} is a run of `slm-ray {record.stage}`, not of `slm-ray {stage}`: continue it with "
            f"slm-ray {record.stage} --resume {path}"
        )
    return record


class Environment(Record):
    """What a run ran on, so that its figures can be read years later; no user or host names."""

    FILE: ClassVar[str] = "environment.json"
    python: str  # Its version
    packages: dict[str, str]  # Versions of the packages that a result may depend on
    system: str  # The operating system and its release
    machine: str  # The processor's architecture
    cpu: str  # The processor's name
    cpus: int  # CPUs that the process may use
    memory_bytes: int | None  # The machine's memory; None where it cannot be told
    implementation: str  # Python's


def keep_unchanged(run: Path, now: Record) -> None:
    """Write the digests of a run's inputs, or check that a resumed run still has the same."""
    before = find_record(run, type(now))
    if before is None:
        write_record(run, now)
    else:
        check_unchanged(run, before, now)


def check_unchanged(run: Path, before: Record, now: Record, cannot: str = "be resumed") -> None:
    """Make sure that a run's inputs are what they were."""
    old, new = before.to_json(), now.to_json()
    for name in sorted(name for name in new if old[name] != new[name]):
        raise UserError(
            f"{run} cannot {cannot}: its {name.replace('_', ' ')} was {old[name]}, now {new[name]}: restore it, or "
            "start a new run"
        )
