"""The text that is measured: packed sequences in a tokenizer's tokens, or whole documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus, split_domains
from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.shards import TokenShards
from slm_ray.data.split import HELD_OUT, sample_part
from slm_ray.data.tokenizers import tokenizer_digest
from slm_ray.evaluate.config import SLIDING, WHOLE, TextConfig
from slm_ray.records.files import write_json
from slm_ray.runtime.progress import Console

_ROUNDS = 3
_BATCH = 32
_CHARACTERS_PER_TOKEN = 4
_SPARE = 2  # first guess: twice the characters that should be needed
_WHOLE_DOCUMENTS = 1 << 62  # characters of a piece, so that no document is cut


def tokenise(texts: Sequence[str], tokenizer: Any) -> Iterable[list[int]]:
    """The ids of every text, without special tokens."""
    for first in range(0, len(texts), _BATCH):
        yield from tokenizer(
            list(texts[first : first + _BATCH]), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]


class Domain:
    """A text that models are measured on by itself, in the tokens of one model after another.

    The first model's tokenizer decides how much text is read.
    """

    def __init__(self, name: str, corpus: Corpus) -> None:
        self.name, self.corpus = name, corpus
        self._num_bytes: int | None = None
        self._documents: tuple[Path, str] | None = None  # the file of the texts, and their digest
        self._shards: dict[str, TokenShards] = {}  # by tokenizer

    def prepare(self, config: TextConfig, tokenizer: Any, out: Path, console: Console) -> tuple[dict[str, Any], Path]:
        """What decides a measurement of a model with this tokenizer, and the place of its tokens or documents."""
        digest = tokenizer_digest(tokenizer)
        if config.window == SLIDING:
            place, texts = self._documents = self._documents or self._write_documents(config, tokenizer, out)
            return {
                "window": SLIDING, "texts": texts, "tokenizer": digest, "length": config.sequence_length,
                "stride": config.stride or max(1, config.sequence_length // 2),
            }, place  # fmt: skip
        if digest not in self._shards:
            self._shards[digest] = found = held_out_shards(
                self.corpus, tokenizer, eval_tokens=config.eval_tokens, sequence_length=config.sequence_length,
                num_bytes=self._num_bytes, console=console,
            )  # fmt: skip
            self._num_bytes = self._num_bytes or found.num_bytes
        shards = self._shards[digest]
        return {"window": config.window, "tokens": shards.digest, "documents": config.documents}, shards.folder

    def _write_documents(self, config: TextConfig, tokenizer: Any, out: Path) -> tuple[Path, str]:
        corpus = self.corpus
        if config.part == WHOLE and not corpus.is_finite:
            raise UserError(f"--part whole reads all of a corpus, and {corpus.name} is a stream without end")
        whole = config.part == WHOLE
        texts = [one.text for one in corpus] if whole else _held_out_texts(corpus, tokenizer, config.eval_tokens)
        digest = digest_json(texts)
        write_json(out / f"texts-{digest}.json", texts)
        return out / f"texts-{digest}.json", digest


def load_domains(config: TextConfig, console: Console) -> list[Domain]:
    """The domains of the ``--data`` given, each ``NAME=CORPUS`` or a corpus."""
    found: list[Domain] = []
    for spec in config.domains:
        name, _, rest = spec.partition("=")
        label, source = (name.strip(), rest.strip()) if rest and "/" not in name else (spec, spec)
        corpus = load_corpus(source, config.text_field, console, config.domain_field)
        if config.domain_field is None:
            found.append(Domain(label, corpus))
            continue
        prefix = f"{label}/" if len(config.domains) > 1 else ""
        found += [Domain(prefix + part, inside) for part, inside in split_domains(corpus, config.domain_field).items()]
    names = [domain.name for domain in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--data names the domain '{twice}' twice: give one of them another name, as NAME={twice}")
    return found


def held_out_shards(
    corpus: Corpus, tokenizer: Any, *, eval_tokens: int, sequence_length: int, num_bytes: int | None, console: Console
) -> TokenShards:
    """A sample of the held-out text in a tokenizer's tokens, packed.

    With ``num_bytes``, the first model's share, it is as much text as that, to within a sequence, instead.
    """

    def packed(num_tokens: int) -> TokenShards:
        return prepare_tokens(
            corpus, tokenizer, HELD_OUT, num_tokens=num_tokens, sequence_length=sequence_length, console=console,
            flag="--eval-tokens",
        )  # fmt: skip

    found = packed(eval_tokens)
    for _ in range(_ROUNDS if num_bytes is not None else 0):
        sequences = max(1, round(found.num_sequences * (num_bytes or 0) / max(found.num_bytes, 1)))
        if sequences == found.num_sequences:
            break
        found = packed(sequences * sequence_length)
    return found


def _held_out_texts(corpus: Corpus, tokenizer: Any, eval_tokens: int) -> list[str]:
    """Whole documents of the held-out part, as many as have so many tokens."""
    target = _SPARE * _CHARACTERS_PER_TOKEN * eval_tokens
    while True:
        sample = sample_part(corpus, HELD_OUT, _WHOLE_DOCUMENTS, target)
        chosen, tokens = [], 0
        for text, ids in zip(sample.pieces, tokenise(sample.pieces, tokenizer), strict=True):
            chosen.append(text)
            tokens += len(ids)
            if tokens >= eval_tokens:
                return chosen
        if sample.is_whole_part:
            raise UserError(
                f"the held_out part of the corpus '{corpus.name}' has {tokens:,} tokens, but {eval_tokens:,} are "
                "needed: give more text, a smaller --eval-tokens, or all of it with --part whole"
            )
        target *= 2
