"""The texts that models continue: the bundled ones, or those of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.records.files import explain_os_error

DEFAULT_PROMPTS = "default"
DEFAULT_DOMAIN = "all"
_BUNDLED = "prompts.jsonl"
_FIELDS = "a line is a JSON object with 'prompt' (or 'text') and, for BLEU, 'reference' or 'references'"
Name = Annotated[str, BeforeValidator(str)]


class Prompt(BaseModel):
    """One text to continue.

    Attributes:
        text: The beginning that the model is given.
        references: Good continuations.
        id: Its name; a file's prompts differ in it.
        domain: The group that it belongs to.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    text: str = Field(validation_alias=AliasChoices("prompt", "text"))
    references: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("references", "reference"))
    id: Name
    domain: Name = Field(default=DEFAULT_DOMAIN, validation_alias=AliasChoices("domain", "group"))

    @field_validator("references", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return () if value is None else (value,) if isinstance(value, str) else value

    @field_validator("text", "references")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if not all(text.strip() for text in ((value,) if isinstance(value, str) else value)):
            raise ValueError("is empty")
        return value


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """The digest of prompts and their references, in their order."""
    return digest_json([prompt.model_dump(mode="json") for prompt in prompts])


def load_prompts(name: str, *, require_references: bool = False) -> list[Prompt]:
    """Read prompts.

    Args:
        name: ``default`` (the bundled ones); a ``.jsonl`` file, an object per line with ``prompt`` or ``text``, and
            optionally ``reference`` or ``references``, ``id`` and ``domain``; or a ``.txt`` file, a prompt per line.
        require_references: Every prompt must have a reference.

    Raises:
        UserError: There is no such file, it has no prompts or a line that is not one, two prompts have one id, or a
            reference is missing.
    """
    path = Path(name).expanduser()
    text, source = _read(name, path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"--prompts {source} is empty: put a prompt on each line")
    prompts, places = [], dict[str, int]()
    for number, line in lines:
        plain = path.suffix == ".txt"
        prompt = Prompt(text=line.rstrip("\r"), id=f"line-{number}") if plain else _parsed(line, source, number)
        if prompt.id in places:
            raise UserError(
                f"--prompts {source}, line {number} has the id '{prompt.id}' of line {places[prompt.id]}: "
                "give each prompt its own"
            )
        places[prompt.id] = number
        prompts.append(prompt)
    bare = [places[prompt.id] for prompt in prompts if not prompt.references]
    if require_references and bare:
        fix = "a .txt file has none: give a .jsonl file" if source.endswith(".txt") else "give each prompt 'reference'"
        raise UserError(
            f"--references needs a reference for every prompt, but {len(bare)} of the {len(prompts)} in {source} have "
            f"none, first line {bare[0]}: {fix}, or leave --references out"
        )
    return prompts


def _read(name: str, path: Path) -> tuple[str, str]:
    """The text of the prompts, and what to call it."""
    if name == DEFAULT_PROMPTS:
        return resources.files("slm_ray.evaluate").joinpath(_BUNDLED).read_text(encoding="utf-8"), DEFAULT_PROMPTS
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


def _parsed(line: str, source: str, number: int) -> Prompt:
    """A line of JSON as a prompt."""
    place = f"--prompts {source}, line {number}"
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is not JSON ({error.msg}, column {error.colno}): {_FIELDS}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{place} is not a JSON object: {_FIELDS}")
    try:
        return Prompt.model_validate({"id": f"line-{number}"} | entry)
    except ValidationError as error:
        field = error.errors()[0]["loc"][0]
        if field in ("prompt", "text"):
            raise UserError(f"{place} has no text in 'prompt' or 'text': {_FIELDS}") from error
        raise UserError(f"{place} has a reference that is not text: 'references' is a list of texts") from error
