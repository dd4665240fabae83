"""What a model writes after prompts: the prompts, the continuations, and the figures of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.evaluate.decoding import Sampling, continue_rows, end_tokens, padding_is_ignored
from slm_ray.evaluate.models import LoadedModel, check_ids
from slm_ray.evaluate.text_metrics import text_metrics
from slm_ray.evaluate.ticker import Ticker
from slm_ray.models.families import context_length
from slm_ray.models.loading import quiet_transformers
from slm_ray.records.files import explain_os_error
from slm_ray.records.measurement import GenerationFigures, GenerationRecord, GenerationSettings, Sample

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



Say = Callable[[str], None]


@dataclass(frozen=True)
class _Written:
    """One continuation: its tokens, its text, whether the model ended it, and how much of the prompt was cut off."""

    tokens: list[int]
    text: str
    ended: bool
    cut: int


def generate(
    loaded: LoadedModel, tokenizer: Any, prompts: Sequence[Prompt], settings: GenerationSettings,
    header: Mapping[str, Any], *, batch: int, say: Say,
) -> GenerationRecord:  # fmt: skip
    """Continue prompts and measure what was written.

    Args:
        loaded: The model.
        tokenizer: Its tokenizer.
        prompts: The prompts.
        settings: How they are continued, and whether BLEU and chrF are measured.
        header: The fields that every record begins with.
        batch: Prompts at once, which changes nothing but the time.
        say: Takes lines of progress.

    Raises:
        UserError: The model cannot generate, has no room for so many tokens, or a prompt cannot be used with it.
    """
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, top_p=settings.top_p,
        seed=settings.seed,
    )  # fmt: skip
    _check(loaded, prompts, with_references=settings.references)
    rows, cuts = _encoded(loaded, tokenizer, prompts, sampling.max_new_tokens)
    notes = _notes(loaded, cuts)
    if batch > 1 and not padding_is_ignored(loaded.model, loaded.device):
        notes.append(f"{loaded.name} reads the padding before a prompt: its prompts are continued one at a time")
        batch = 1
    for note in notes:
        say(note)
    written = _written(loaded, tokenizer, prompts, rows, cuts, sampling, batch, say)
    references = [prompt.references for prompt in prompts] if settings.references else None
    texts, tokens, ended = ([getattr(one, name) for one in written] for name in ("text", "tokens", "ended"))
    metrics = text_metrics(texts, tokens, ended, references)
    figures = GenerationFigures(
        prompts=len(prompts), settings=settings, metrics={name: found.figure for name, found in metrics.items()},
        samples=tuple(_sample(prompt, one) for prompt, one in zip(prompts, written, strict=True)), notes=tuple(notes),
    )  # fmt: skip
    return GenerationRecord(
        **header, figures=figures,
        values={name: found.values for name, found in metrics.items() if found.values is not None},
        statistics={name: found.statistics for name, found in metrics.items() if found.statistics is not None},
        signatures={name: found.signature for name, found in metrics.items() if found.signature is not None},
    )  # fmt: skip


def _check(loaded: LoadedModel, prompts: Sequence[Prompt], *, with_references: bool) -> None:
    can = getattr(loaded.model, "can_generate", lambda: False)
    if not can():
        raise UserError(f"{loaded.name} cannot generate text: leave it out, or leave --prompts out")
    bare = [prompt.id for prompt in prompts if not prompt.references]
    if with_references and bare:
        raise UserError(f"--references needs a reference for every prompt, but '{bare[0]}' has none: give it one")


def _encoded(
    loaded: LoadedModel, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int
) -> tuple[list[list[int]], list[int]]:
    """Each prompt's tokens, and how many were cut from its left so that the new ones fit the context."""
    context = context_length(loaded.model.config)
    if context and max_new_tokens >= context:
        raise UserError(
            f"--max-new-tokens {max_new_tokens} leaves no room for a prompt in the {context} positions of "
            f"{loaded.name}: give {context - 1} or less"
        )
    rows, cuts = [], []
    for prompt in prompts:
        with quiet_transformers():
            ids = list(tokenizer(prompt.text)["input_ids"])
        while ids and ids[-1] == tokenizer.eos_token_id:  # a tokenizer that ends every text would end this one
            ids.pop()
        if not ids:
            raise UserError(f"the tokenizer of {loaded.name} makes no tokens of prompt '{prompt.id}': leave it out")
        check_ids(loaded.name, loaded.model, max(ids))
        kept = _newest(ids, context - max_new_tokens if context else len(ids), tokenizer.bos_token_id)
        rows.append(kept)
        cuts.append(len(ids) - len(kept))
    return rows, cuts


def _newest(ids: list[int], room: int, begin: int | None) -> list[int]:
    """The last tokens that fit, after the one that begins every text where the tokenizer put it there."""
    if len(ids) <= room:
        return ids
    return [ids[0], *ids[len(ids) - room + 1 :]] if ids[0] == begin and room > 1 else ids[-room:]


def _notes(loaded: LoadedModel, cuts: Sequence[int]) -> list[str]:
    cut = [count for count in cuts if count]
    if not cut:
        return []
    return [
        f"{len(cut)} of {len(cuts)} prompts are longer than the context of {loaded.name}: cut from the left, by up to "
        f"{max(cut)} tokens"
    ]


def _written(
    loaded: LoadedModel, tokenizer: Any, prompts: Sequence[Prompt], rows: Sequence[list[int]], cuts: Sequence[int],
    sampling: Sampling, batch: int, say: Say,
) -> list[_Written]:  # fmt: skip
    """All continuations, in the prompts' order; made longest first, so that prompts of like length are together."""
    ends = end_tokens(loaded.model, tokenizer)
    ticker = Ticker(say, "generating", len(prompts), "prompts")
    order = sorted(range(len(rows)), key=lambda place: (-len(rows[place]), place))
    found: dict[int, _Written] = {}
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        names = [prompts[place].id for place in places]
        done = continue_rows(loaded, [rows[place] for place in places], names, ends, sampling)
        for place, (tokens, ended) in zip(places, done, strict=True):
            found[place] = _Written(tokens, _decoded(tokenizer, rows[place], tokens), ended, cuts[place])
        ticker.advance(len(places))
    return [found[place] for place in range(len(rows))]


def _decoded(tokenizer: Any, prompt: list[int], tokens: list[int]) -> str:
    """The new text, decoded after its prompt: some tokenizers drop the space before what they take for a beginning."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, whole = tokenizer.decode(prompt, **options), tokenizer.decode([*prompt, *tokens], **options)
    return str(whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens, **options))


def _sample(prompt: Prompt, written: _Written) -> Sample:
    return Sample(
        id=prompt.id, domain=prompt.domain, prompt=prompt.text,
        reference=prompt.references[0] if prompt.references else None, text=written.text, tokens=len(written.tokens),
        ended=written.ended, cut=written.cut,
    )  # fmt: skip
