"""What a model writes after prompts: the prompts, the continuations, and the figures of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.evaluate.decoding import Sampling, continue_rows, end_tokens
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
    """One text to continue, its good continuations, its own name, and the group that it belongs to."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    text: str = Field(validation_alias=AliasChoices("prompt", "text"))
    references: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("references", "reference"))
    id: Name = ""
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
    """Read ``default`` (bundled prompts), a ``.jsonl`` file, or a ``.txt`` file with a prompt per line."""
    path = Path(name).expanduser()
    prompts: dict[str, tuple[int, Prompt]] = {}
    for number, line in enumerate(_read(name, path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"--prompts {name}, line {number}"
        try:
            prompt = Prompt(text=line.rstrip("\r")) if path.suffix == ".txt" else Prompt.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            said = ": ".join(map(str, [*first["loc"], first["msg"]]))
            raise UserError(f"{place} is not a prompt ({said}): {_FIELDS}") from None
        prompt = prompt if prompt.id else prompt.model_copy(update={"id": f"line-{number}"})
        if prompt.id in prompts:
            twin = prompts[prompt.id][0]
            raise UserError(f"{place} has the id '{prompt.id}' of line {twin}: give each prompt its own")
        prompts[prompt.id] = number, prompt
    if not prompts:
        raise UserError(f"--prompts {name} is empty: put a prompt on each line")
    bare = [number for number, prompt in prompts.values() if not prompt.references]
    if require_references and bare:
        fix = "a .txt file has none: give a .jsonl file" if path.suffix == ".txt" else "give each prompt 'reference'"
        raise UserError(
            f"--references needs a reference for every prompt, but {len(bare)} of the {len(prompts)} in {name} have "
            f"none, first line {bare[0]}: {fix}, or leave --references out"
        )
    return [prompt for _, prompt in prompts.values()]


def _read(name: str, path: Path) -> str:
    if name == DEFAULT_PROMPTS:
        return resources.files("slm_ray.evaluate").joinpath(_BUNDLED).read_text(encoding="utf-8")
    if path.suffix not in (".jsonl", ".txt") or not path.is_file():
        raise UserError(f"--prompts {name} is not a .jsonl or .txt file: give one, or '{DEFAULT_PROMPTS}'")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts {name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise explain_os_error(error, f"reading {name}") from error


def generate(
    loaded: LoadedModel, tokenizer: Any, prompts: Sequence[Prompt], settings: GenerationSettings,
    header: Mapping[str, Any], *, batch: int, say: Callable[[str], None],
) -> GenerationRecord:  # fmt: skip
    """Continue prompts and measure what was written; ``header`` has the fields that every record begins with."""
    if not getattr(loaded.model, "can_generate", lambda: False)():
        raise UserError(f"{loaded.name} cannot generate text: leave it out, or leave --prompts out")
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, top_p=settings.top_p,
        seed=settings.seed,
    )  # fmt: skip
    rows, cuts = _encoded(loaded, tokenizer, prompts, sampling.max_new_tokens)
    notes = []
    if any(cuts):
        longer = f"{sum(map(bool, cuts))} of {len(cuts)} prompts are longer than the context of {loaded.name}"
        notes.append(f"{longer}: cut from the left, by up to {max(cuts)} tokens")
    for note in notes:
        say(note)
    samples, tokens = _written(loaded, tokenizer, prompts, rows, cuts, sampling, batch, say)
    references = [prompt.references for prompt in prompts] if settings.references else None
    metrics = text_metrics([one.text for one in samples], tokens, [one.ended for one in samples], references)
    figures = GenerationFigures(
        prompts=len(prompts), settings=settings, metrics={name: found.figure for name, found in metrics.items()},
        samples=tuple(samples), notes=tuple(notes),
    )  # fmt: skip
    return GenerationRecord(
        **header, figures=figures,
        values={name: found.values for name, found in metrics.items() if found.values is not None},
        statistics={name: found.statistics for name, found in metrics.items() if found.statistics is not None},
        signatures={name: found.signature for name, found in metrics.items() if found.signature is not None},
    )  # fmt: skip


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


def _written(
    loaded: LoadedModel, tokenizer: Any, prompts: Sequence[Prompt], rows: Sequence[list[int]], cuts: Sequence[int],
    sampling: Sampling, batch: int, say: Callable[[str], None],
) -> tuple[list[Sample], list[list[int]]]:  # fmt: skip
    """All continuations and their tokens, in the prompts' order; made longest first, so that like lengths meet."""
    ends = end_tokens(loaded.model, tokenizer)
    ticker = Ticker(say, "generating", len(prompts), "prompts")
    order = sorted(range(len(rows)), key=lambda place: (-len(rows[place]), place))
    found: dict[int, tuple[Sample, list[int]]] = {}
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        names = [prompts[place].id for place in places]
        done = continue_rows(loaded, [rows[place] for place in places], names, ends, sampling)
        for place, (tokens, ended) in zip(places, done, strict=True):
            prompt = prompts[place]
            sample = Sample(
                id=prompt.id, domain=prompt.domain, prompt=prompt.text, reference=next(iter(prompt.references), None),
                text=_decoded(tokenizer, rows[place], tokens), tokens=len(tokens), ended=ended, cut=cuts[place],
            )  # fmt: skip
            found[place] = sample, tokens
        ticker.advance(len(places))
    return [found[place][0] for place in range(len(rows))], [found[place][1] for place in range(len(rows))]


def _decoded(tokenizer: Any, prompt: list[int], tokens: list[int]) -> str:
    """The new text, decoded after its prompt: some tokenizers drop the space before what they take for a beginning."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, whole = tokenizer.decode(prompt, **options), tokenizer.decode([*prompt, *tokens], **options)
    return str(whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens, **options))
