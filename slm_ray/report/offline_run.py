"""What W&B keeps of a run on this machine's disk, read back: by W&B's own reader, and without its server."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, first_line
from slm_ray.config.units import format_count
from slm_ray.records.files import explain_os_error, read_json
from slm_ray.report.records import mapping

_SECONDS = 120.0
_TABLE, _PICTURE = "table-file", "image-file"


@dataclass
class OfflineRun:
    """One of W&B's run folders.

    Attributes:
        file: Its ``.wandb`` file.
        id: The run's id in W&B; folders of one resumed run share it.
        name: Its name.
        project: Its project.
        group: Its group.
        job_type: What it did.
        tags: Words to find it by.
        config: Its options.
        axes: Figure, or pattern of figures, to what it is drawn against.
        figures: Name of a figure to the number of rows it is in.
        last: The last value of every figure.
        rows: All rows, in order.
        summary: What the run set as its summary.
        media: Name to what is said of a table or picture.
        finished: It came to its end.
        is_sent: It was sent to the server.
        notes: What is damaged.
    """

    file: Path
    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    figures: Counter[str] = field(default_factory=Counter)
    last: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    media: dict[str, dict[str, Any]] = field(default_factory=dict)
    finished: bool = False
    is_sent: bool = False
    notes: list[str] = field(default_factory=list)

    def table(self, name: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a table.

        Raises:
            UserError: There is no such table, or its file is gone or damaged.
        """
        found = self.media.get(name)
        if found is None or found.get("_type") != _TABLE:
            known = ", ".join(sorted(key for key, value in self.media.items() if value.get("_type") == _TABLE))
            raise UserError(f"{self.file.parent} has no table {name}: it has {known or 'none'}")
        content = mapping(read_json(self._media_file(str(found.get("path")))))
        return list(content.get("columns") or []), list(content.get("data") or [])

    def picture(self, name: str) -> Path:
        """The file of a picture.

        Raises:
            UserError: There is no such picture.
        """
        found = self.media.get(name)
        if found is None or found.get("_type") != _PICTURE:
            raise UserError(f"{self.file.parent} has no picture {name}")
        return self._media_file(str(found.get("path")))

    def _media_file(self, name: str) -> Path:
        files = (self.file.parent / "files").resolve()
        path = (files / name).resolve()
        if not path.is_relative_to(files) or not path.is_file():
            raise UserError(f"{self.file.parent} has lost {name}: it cannot be sent any more")
        return path


def find_offline_runs(path: Path) -> list[Path]:
    """The ``.wandb`` files of a run folder, of a folder of W&B's, or of anything around them.

    Raises:
        UserError: There are none.
    """
    if path.is_file() and path.suffix == ".wandb":
        return [path]
    found = sorted(path.rglob("run-*.wandb")) if path.is_dir() else []
    if not found:
        state = "does not exist" if not path.exists() else "holds no run of W&B's (run-….wandb)"
        raise UserError(f"{path} {state}: give the folder of a run made with --tracker wandb")
    return found


def read_offline_run(file: Path) -> OfflineRun:
    """Read one ``.wandb`` file.

    Args:
        file: As :func:`find_offline_runs` gives them.

    Raises:
        UserError: W&B cannot read it.
    """
    run = OfflineRun(file, is_sent=file.with_name(file.name + ".synced").exists())
    for record in _records(file, run.notes):
        kind = str(record.get("type"))
        _take(run, kind, mapping(record.get(kind)))
    if not run.id:
        reason = "; ".join(run.notes) or "it says nothing"
        raise UserError(f"W&B finds no run in {file} ({reason}): it was cut short at its start, or is another file")
    return run


def _records(file: Path, notes: list[str]) -> Iterator[Mapping[str, Any]]:
    """What ``wandb leet inspect`` prints: a line of JSON per record."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"W&B did not read {file} within {_SECONDS:.0f} s: try `wandb leet inspect {file}`") from error
    except OSError as error:
        raise explain_os_error(error, f"starting W&B to read {file}") from error
    lines = done.stdout.decode("utf-8", errors="replace").splitlines()
    said = done.stderr.decode("utf-8", errors="replace").strip()
    if done.returncode and not lines:
        if "No module named" in said or "No such command" in said:
            raise UserError(f"reading {file} needs wandb 0.31 or newer: pip install -U wandb")
        raise UserError(f"W&B cannot read {file}: {(said.splitlines() or ['it does not say why'])[-1][:200]}")
    if done.returncode:
        notes.append(f"the file is cut short ({first_line(RuntimeError(said), 120)}); what comes before is shown")
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            notes.append("a record could not be read")
            continue
        if isinstance(record, Mapping):
            yield record


def _take(run: OfflineRun, kind: str, record: Mapping[str, Any]) -> None:
    if kind == "run":
        run.id, run.name = str(record.get("run_id") or run.id), str(record.get("display_name") or run.name)
        run.project, run.group = str(record.get("project") or ""), str(record.get("run_group") or "")
        run.job_type, run.tags = str(record.get("job_type") or ""), tuple(map(str, record.get("tags") or ()))
        kind, record = "config", mapping(record.get("config"))
    if kind == "config":
        run.config |= {key: value for key, value in mapping(record.get("update")).items() if key != "_wandb"}
    elif kind == "metric" and record.get("step_metric"):
        run.axes[str(record.get("glob_name") or record.get("name"))] = str(record["step_metric"])
    elif kind == "history":
        _take_row(run, mapping(record.get("item")))
    elif kind == "summary":
        own, _ = _split(mapping(record.get("update")))
        run.summary |= own
    elif kind == "exit":
        run.finished = True


def _take_row(run: OfflineRun, item: Mapping[str, Any]) -> None:
    figures, media = _split(item)
    run.media |= media
    run.rows.append({**figures, "_step": item.get("_step")})
    run.figures.update(figures.keys())
    run.last |= figures


def _split(item: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The figures of a row, and its tables and pictures, whose fields stand in it as ``NAME.FIELD``."""
    media: dict[str, dict[str, Any]] = {key.removesuffix("._type"): {} for key in item if key.endswith("._type")}
    figures = {}
    for key, value in item.items():
        owner = next((name for name in media if key.startswith(f"{name}.")), None)
        if owner is not None:
            media[owner][key.removeprefix(f"{owner}.")] = value
        elif not key.startswith("_"):
            figures[key] = value
    return figures, media


def describe(run: OfflineRun) -> str:
    """A run in a few lines, and how to send it."""
    shown = {
        "run": f"{run.name}, id {run.id}, project {run.project}",
        "group": run.group, "job type": run.job_type, "tags": ", ".join(run.tags),
        "options": ", ".join(sorted(run.config)),
        "figures": _figures(run),
        "tables": _media(run, _TABLE), "pictures": _media(run, _PICTURE),
        "state": ("finished" if run.finished else "not finished") + (", sent" if run.is_sent else ", not sent"),
    }  # fmt: skip
    lines = [str(run.file.parent)]
    lines += [f"  {name.ljust(9)} {value}" for name, value in shown.items() if value]
    lines += [f"  note: {note}" for note in run.notes]
    if not run.is_sent:
        lines.append(f"  send it   {sync_command([run])}")
    return "\n".join(lines)


def _figures(run: OfflineRun) -> str:
    counts: dict[int, list[str]] = {}
    for name, count in sorted(run.figures.items()):
        counts.setdefault(count, []).append(name)
    return "; ".join(f"{', '.join(named)} ({format_count(count)} rows)" for count, named in sorted(counts.items()))


def _media(run: OfflineRun, kind: str) -> str:
    def size(value: Mapping[str, Any]) -> str:
        return f" ({value.get('nrows')} rows, {value.get('ncols')} columns)" if kind == _TABLE else ""

    found = sorted((name, value) for name, value in run.media.items() if value.get("_type") == kind)
    return ", ".join(f"{name}{size(value)}" for name, value in found)


def sync_command(runs: Sequence[OfflineRun]) -> str:
    """What sends some folders of W&B's to its server, where there is a key."""
    return " ".join(["wandb sync", *(shlex.quote(str(run.file.parent)) for run in runs)])
