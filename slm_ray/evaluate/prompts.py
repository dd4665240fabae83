"""The texts that models continue: the bundled ones, or a file's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.records.files import explain_os_error

DEFAULT_PROMPTS = "default"
_BUNDLED = "prompts.jsonl"
_FIELDS = "a line is a JSON object with 'prompt' (or 'text') and, for BLEU, 'reference' or 'references'"
DEFAULT_DOMAIN = "all"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One text to continue.

    Attributes:
        text: What the model is given.
        references: Good continuations; none where there are none.
        id: Its name; a file's prompts differ in it.
        domain: The group that it belongs to.
    """

    text: str
    references: tuple[str, ...] = ()
    id: str
    domain: str = DEFAULT_DOMAIN

    def to_json(self) -> dict[str, Any]:
        """For a worker, and for the record."""
        return asdict(self) | {"references": list(self.references)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Prompt:
        """The inverse of :meth:`to_json`."""
        references = tuple(map(str, entry["references"]))
        return cls(text=entry["text"], references=references, id=entry["id"], domain=entry["domain"])


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """The digest of prompts and their references, in their order."""
    return digest_json([prompt.to_json() for prompt in prompts])


def load_prompts(name: str, *, require_references: bool = False) -> list[Prompt]:
    """Read prompts.

    Args:
        name: ``default`` (the bundled ones); a ``.jsonl`` file, an object per line with ``prompt`` or ``text``, and
            optionally ``reference`` or ``references``, ``id`` and ``domain``; or a ``.txt`` file, a prompt per line.
        require_references: Every prompt must have a reference.

    Raises:
        UserError: There is no such file, it has no prompts or a line that is none, two prompts have one id, or a
            reference is missing.
    """
    path = Path(name).expanduser()
    text, source = _read(name, path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"--prompts {source} is empty: put a prompt on each line")
    if path.suffix == ".txt":
        prompts = [Prompt(text=line.rstrip("\r"), id=f"line-{number}") for number, line in lines]
    else:
        prompts = [_parsed(line, f"--prompts {source}, line {number}", f"line-{number}") for number, line in lines]
    _check_ids(prompts, [number for number, _ in lines], source)
    if require_references:
        _check_references(prompts, [number for number, _ in lines], source)
    return prompts


def _read(name: str, path: Path) -> tuple[str, str]:
    """The text of the prompts, and what to call it."""
    if name == DEFAULT_PROMPTS:
        bundled = resources.files("slm_ray.evaluate").joinpath(_BUNDLED)
        return bundled.read_text(encoding="utf-8"), DEFAULT_PROMPTS
    if path.suffix not in (".jsonl", ".txt"):
        raise UserError(f"--prompts {name} is neither '{DEFAULT_PROMPTS}' nor a .jsonl or .txt file: give one of these")
    if not path.is_file():
        raise UserError(f"--prompts {name} is not there: give a .jsonl or .txt file, or '{DEFAULT_PROMPTS}'")
    try:
        return path.read_text(encoding="utf-8-sig"), str(path)
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts {name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise explain_os_error(error, f"reading {name}") from error


def _parsed(line: str, place: str, default_id: str) -> Prompt:
    """A line of JSON as a prompt."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is not JSON ({error.msg}, column {error.colno}): {_FIELDS}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{place} is no JSON object: {_FIELDS}")
    text = entry.get("prompt", entry.get("text"))
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place} has no text in 'prompt' or 'text': {_FIELDS}")
    domain, name = entry.get("domain", entry.get("group", DEFAULT_DOMAIN)), entry.get("id", default_id)
    return Prompt(text=text, references=tuple(_references(entry, place)), id=str(name), domain=str(domain))


def _references(entry: Mapping[str, Any], place: str) -> Iterator[str]:
    found = entry.get("references", entry.get("reference"))
    if found is None:
        return
    for reference in [found] if isinstance(found, str) else found if isinstance(found, list) else [None]:
        if not isinstance(reference, str) or not reference.strip():
            raise UserError(f"{place} has a reference that is no text: 'references' is a list of strings")
        yield reference


def _check_ids(prompts: Sequence[Prompt], numbers: Sequence[int], source: str) -> None:
    seen: dict[str, int] = {}
    for prompt, number in zip(prompts, numbers, strict=True):
        if prompt.id in seen:
            raise UserError(
                f"--prompts {source}, line {number} has the id '{prompt.id}' of line {seen[prompt.id]}: "
                "give each prompt its own"
            )
        seen[prompt.id] = number


def _check_references(prompts: Sequence[Prompt], numbers: Sequence[int], source: str) -> None:
    bare = [number for prompt, number in zip(prompts, numbers, strict=True) if not prompt.references]
    if bare:
        fix = "a .txt file has none: give a .jsonl file" if source.endswith(".txt") else "give each prompt 'reference'"
        raise UserError(
            f"--references needs a reference for every prompt, but {len(bare)} of the {len(prompts)} in {source} have "
            f"none, first line {bare[0]}: {fix}, or leave --references out"
        )
