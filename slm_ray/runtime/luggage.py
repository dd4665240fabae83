"""What a command takes along to a cluster that it is not part of: the files its words name, and where they lie there.

On the cluster's head a folder stands for the one the command was given in. What lies below that has the same relative
place there; what lies elsewhere is put below ``outside/``, and the words say so.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slm_ray.config.errors import UserError
from slm_ray.records.files import explain_os_error

_ELSEWHERE = "outside/"
_THERE = re.compile(r"\boutside(/[^\s:;,'\"()]+)")
_RUN_FLAGS = ("--out", "--resume")
_AS_THEY_ARE = ("--storage", "--address")  # the same place for both machines
_HAS_NAMES = (".yaml", ".yml", ".json")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Entry:
    """A file as both sides compare it.

    Attributes:
        size: Bytes.
        time: When it was last changed, in nanoseconds.
    """

    size: int
    time: int


@dataclass
class Luggage:
    """The words of a command as the head is given them, and what goes along.

    Attributes:
        here: The folder the command was given in.
        words: Its arguments, with places of the head.
        places: Files and folders that the words name, by their place on the head.
        runs: Those of them that the command writes: what ``--out`` and ``--resume`` name.
        names: Places on the head and what they were called here, where the two differ.
    """

    here: Path
    words: list[str] = field(default_factory=list)
    places: dict[str, Path] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)

    def back(self, line: str) -> str:
        """A line that the command printed there, with the places of here."""
        for there, called in self.names.items():
            line = line.replace(there, called)
        return _THERE.sub(lambda found: found[1] if Path(found[1]).exists() else found[0], line)


def pack(words: Sequence[str], here: Path) -> Luggage:
    """Find what a command's words name.

    Args:
        words: Arguments, such as ``--data texts`` or ``--data=texts``; parts with commas or ``=`` between are looked at
            each. Files of YAML and JSON, and the options of a run to go on with, are looked into as well.
        here: The folder the command is given in.

    Raises:
        UserError: A file names one outside of ``here``, which would have to be written anew, or cannot be read.
    """
    found, flag = Luggage(here), ""
    for word in words:
        name, is_pair, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if word.startswith("--") and not is_pair:
            flag = word
            found.words.append(word)
            continue
        of = name or flag
        is_run = of in _RUN_FLAGS
        if of in _AS_THEY_ARE:
            found.words.append(word)
            continue
        parts = [value] if is_run else re.split(r"([,=])", value)
        changed = "".join(_take(found, part, is_run) for part in parts)
        found.words.append(f"{name}={changed}" if is_pair else changed)
    for place, path in [*found.places.items()]:
        for inner in _named_in(path / "config.json" if place in found.runs else path, here):
            _take_inner(found, inner, path)
    return found


def _take(found: Luggage, part: str, is_run: bool) -> str:
    """Take along what a part of a word names; gives what it is called on the head."""
    if not part or part.startswith("-"):
        return part
    is_wild = not _exists(found.here, part) and not is_run
    if is_wild and not _WILD.search(part):
        return part
    path = Path(os.path.normpath(found.here / Path(part).expanduser()))
    paths = [Path(one) for one in glob.glob(str(path))] if is_wild else [path]
    if not paths:
        return part
    for one in paths:
        place = _place(one, found.here)
        found.places[place] = one
        if is_run:
            found.runs.add(place)
    there = _place(path, found.here)
    if Path(part) == Path(there):
        return part
    found.names[there] = part
    return there


def _place(path: Path, here: Path) -> str:
    if path == here:
        raise UserError(f"{path} is the folder the command is given in, which would be sent whole: name what is meant")
    if path.is_relative_to(here):
        return path.relative_to(here).as_posix()
    return _ELSEWHERE + path.as_posix().lstrip("/")


def _take_inner(found: Luggage, name: str, source: Path) -> None:
    path = _inner_path(found.here, name)
    if name.startswith(_ELSEWHERE):
        found.places.setdefault(name, path)
    elif not path.is_relative_to(found.here):
        raise UserError(
            f"{source} names {name}, which is not below {found.here}: a file's text is not changed on its way to the "
            "cluster; give it as an option, or give the command in a folder that holds it"
        )
    elif path != found.here:
        found.places.setdefault(_place(path, found.here), path)


def _inner_path(here: Path, name: str) -> Path:
    if name.startswith(_ELSEWHERE):  # a run that was begun on a cluster keeps what things were called there
        return Path(os.path.normpath("/" + name.removeprefix(_ELSEWHERE)))
    return Path(os.path.normpath(here / Path(name).expanduser()))


def _named_in(source: Path, here: Path) -> Iterator[str]:
    """Existing files that a file of options names."""
    if source.suffix not in _HAS_NAMES or not source.is_file():
        return
    try:
        value = yaml.safe_load(source.read_text(encoding="utf-8"))  # JSON too
    except OSError as error:
        raise explain_os_error(error, f"reading {source}") from error
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # the command itself says what is wrong with it
    for leaf in _leaves(value):
        if "\n" not in leaf and _exists(here, leaf):
            yield leaf


def _exists(here: Path, name: str) -> bool:
    try:
        return bool(name.strip()) and _inner_path(here, name).exists()
    except (OSError, ValueError, RuntimeError):  # too long, or not a name at all
        return False


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)


def files_below(root: Path, places: Iterable[str]) -> dict[str, Entry]:
    """The files of some places below a folder; hidden ones are left out.

    Args:
        root: The folder.
        places: Files or folders in it; one that is not there has none.

    Raises:
        UserError: They cannot be read.
    """
    found: dict[str, Entry] = {}
    try:
        for place in places:
            top = root / place
            for path in [top] if top.is_file() else sorted(top.rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    stat = path.stat()
                    found[f"{place}/{path.relative_to(top).as_posix()}" if path != top else place] = Entry(
                        stat.st_size, stat.st_mtime_ns
                    )
    except OSError as error:
        raise explain_os_error(error, f"reading {root}") from error
    return found
