"""What a model writes after prompts, and the figures of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.evaluate.decoding import Sampling, continue_rows, end_tokens, padding_is_ignored
from slm_ray.evaluate.models import LoadedModel, check_ids
from slm_ray.evaluate.prompts import Prompt
from slm_ray.evaluate.text_metrics import text_metrics
from slm_ray.evaluate.ticker import Ticker
from slm_ray.models.families import context_length
from slm_ray.models.loading import quiet_transformers
from slm_ray.records.measurement import GenerationFigures, GenerationRecord, GenerationSettings, Sample

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
