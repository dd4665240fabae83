"""The records every run folder begins with: what it was started with, and on what."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from slm_ray.config.errors import UserError
from slm_ray.records.base import Record, find_record, read_record, write_record


class RunRecord(Record):
    """What a run was started with.

    Attributes:
        stage: The stage's name, such as ``search``.
        command: The command as it was given, quoted for a shell.
        options: Every option by name, resolved.
    """

    FILE: ClassVar[str] = "config.json"
    stage: str
    command: str
    options: dict[str, Any]


def run_of(stage: str, path: Path) -> RunRecord:
    """What a run of a command was started with.

    Args:
        stage: The command whose run it must be.
        path: The run's folder.

    Raises:
        UserError: It is a run of another command, or of another version of slm_ray.
    """
    record = read_record(path, RunRecord)
    if record.stage != stage:
        raise UserError(
            f"{path} is a run of `slm-ray {record.stage}`, not of `slm-ray {stage}`: continue it with "
            f"slm-ray {record.stage} --resume {path}"
        )
    return record


class Environment(Record):
    """What a run ran on, so that its figures can be read years later; no user or host names.

    Attributes:
        python: Its version.
        packages: Versions of the packages that a result may depend on.
        system: The operating system and its release.
        machine: The processor's architecture.
        cpu: The processor's name.
        cpus: CPUs that the process may use.
        memory_bytes: The machine's memory; None where it cannot be told.
        implementation: Python's.
    """

    FILE: ClassVar[str] = "environment.json"
    python: str
    packages: dict[str, str]
    system: str
    machine: str
    cpu: str
    cpus: int
    memory_bytes: int | None
    implementation: str


def keep_unchanged(run: Path, now: Record) -> None:
    """Write the digests of a run's inputs, or check that a resumed run still has the same.

    Raises:
        UserError: One of the inputs is no longer what the run was started with.
    """
    before = find_record(run, type(now))
    if before is None:
        write_record(run, now)
    else:
        check_unchanged(run, before, now)


def check_unchanged(run: Path, before: Record, now: Record, cannot: str = "be resumed") -> None:
    """Make sure that a run's inputs are what they were.

    Args:
        run: Its folder.
        before: What they were.
        now: What they are.
        cannot: What is not possible otherwise.

    Raises:
        UserError: They are not.
    """
    old, new = before.to_json(), now.to_json()
    for name in sorted(name for name in new if old[name] != new[name]):
        raise UserError(
            f"{run} cannot {cannot}: its {name.replace('_', ' ')} was {old[name]}, now {new[name]}: restore it, or "
            "start a new run"
        )
