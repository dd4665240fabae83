"""What a search starts from: the teacher, the space, the budget and all tokens, with their digests."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus
from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.shards import TokenShards
from slm_ray.data.split import CALIBRATION, HELD_OUT, TRAIN, summarise_parts
from slm_ray.evaluate.teacher_text import MixedText, corpus_by, mix, num_aside, num_to_write, teacher_text
from slm_ray.models.precision import DTYPES, bf16_gain, choose_precision, measure_precision
from slm_ray.models.teacher_sizes import look_up_teacher
from slm_ray.models.teachers import Teacher, load_teacher
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import Budget
from slm_ray.records.files import cache_folder
from slm_ray.records.search import Corpus as CorpusRecord
from slm_ray.records.search import OtherText, SearchInputsRecord
from slm_ray.runtime.hardware import device_of
from slm_ray.runtime.progress import Console
from slm_ray.runtime.session import default_workers
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import share_of
from slm_ray.search.genome import Genome
from slm_ray.search.space import NATURAL, VOCABULARY, SearchSpace, load_space
from slm_ray.search.vocabulary import Vocabularies, keep_order, vocabulary_sizes


@dataclass(frozen=True)
class SearchInputs:
    """Everything a search reads."""

    teacher: Teacher  # The teacher in the cache
    architecture: Architecture  # Its sizes
    space: SearchSpace  # The search space, its order replaced where the options say so
    budget: Budget  # The hard range of sizes
    corpus: Corpus  # Where the text comes from
    calibration: TokenShards | MixedText  # Tokens that candidates are measured on
    train: TokenShards  # Tokens that unit scores are learned from
    held_out: TokenShards  # Tokens that the front is measured on
    precision: str  # ``fp32`` or ``bf16``
    device: str = "cpu"  # ``cpu`` or ``cuda``: what candidates and unit scores are computed on
    # The corpus's share of the tokens that weights are fitted on; None where nothing is reconstructed
    own_fit: TokenShards | None = None
    reconstruction: MixedText | None = None  # All of these tokens; None until :func:`with_fit_text` has made them
    # ``[sequences, length]`` of the teacher's own text that nothing is fitted on; it decides with the calibration text
    # whether fitted weights are kept. None where the teacher writes nothing.
    aside: NDArray[np.int32] | None = None
    written_tokens: int = 0  # Tokens that the teacher wrote just now; 0 where the cache had them
    other: TokenShards | None = None  # Tokens of another kind of text; None without ``--other-data``
    other_name: str = ""  # What it is called
    vocabularies: Vocabularies = field(default_factory=Vocabularies)  # Those that candidates may have
    by_teacher: NDArray[np.int32] | None = None  # ``[sequences, length]`` that the teacher wrote; None: nothing yet

    @property
    def here(self) -> tuple[str, str]:
        """The device of what this process computes itself (fits, the teacher's own text), and the type there.

        The head of a cluster whose workers have GPUs may have none.
        """
        if self.device == "cpu" or torch.cuda.is_available():
            return self.device, self.precision
        return "cpu", choose_precision("auto")

    def corpus_record(self) -> CorpusRecord:
        """The text as results hold it."""
        other = None if self.other is None else OtherText(name=self.other_name, tokens=self.other.num_tokens)
        return CorpusRecord(
            name=self.corpus.name, digest=self.corpus.digest, calibration_tokens=self.calibration.num_tokens,
            held_out_tokens=self.held_out.num_tokens, train_tokens=self.train.num_tokens,
            calibration_digest=self.calibration.digest, parts=summarise_parts(self.corpus), other=other,
        )  # fmt: skip

    def record(self) -> SearchInputsRecord:
        """What must be the same for a run to be continued."""
        return SearchInputsRecord(
            teacher=self.teacher.digest, space=self.space.digest, calibration_tokens=self.calibration.digest,
            train_tokens=self.train.digest, held_out_tokens=self.held_out.digest,
            other_tokens=None if self.other is None else self.other.digest,
            budget=(self.budget.quantity, self.budget.low, self.budget.high),
            precision=self.precision, device=self.device,
        )  # fmt: skip


def space_of(config: SearchConfig) -> SearchSpace:
    """The search space, its order replaced where the options say so."""
    space = load_space(config.space.space)
    return space.with_order(config.space.order) if config.space.order else space


def sizes_to_try(config: SearchConfig, space: SearchSpace, teacher: Architecture) -> tuple[int | None, ...]:
    """The numbers of tokens that candidates may keep, the likeliest first; None: all."""
    rows, most = config.space.vocabulary, teacher.structure.vocab_size
    compares = [name for name in config.plan.needed_proxies if name == "kl"]
    if rows is not None and (rows >= most or compares):
        rule = "does not go with the proxy kl, which compares distributions over one vocabulary"
        rule = rule if compares else f"is not below the teacher's {most:,} rows"
        raise UserError(f"--vocabulary {rows:,} {rule}: leave it out")
    axis = space.axes.get(VOCABULARY)
    if rows is not None:
        return (rows,)
    if axis is None or config.space.keep_vocabulary or compares or config.winners.finalists:
        return (None,)
    return vocabulary_sizes(most, axis.step, axis.least)


def with_rows(teacher: Architecture, rows: int | None) -> Architecture:
    """A teacher's sizes with so many rows of its vocabulary; None: all."""
    if rows is None:
        return teacher
    return dataclasses.replace(teacher, structure=dataclasses.replace(teacher.structure, vocab_size=rows))


def check_fits(config: SearchConfig, space: SearchSpace, teacher: Architecture) -> tuple[Budget, list[Genome]]:
    """Make sure that a teacher has positions for the sequences, and that the space can meet the budget.

    Returns the budget, and a genome for each vocabulary with which it can, the likeliest first.
    """
    most = teacher.structure.max_position_embeddings
    if config.length > most:
        raise UserError(
            f"--sequence-length {config.length} is over the teacher's {most} positions: give {most} or less"
        )
    budget, natural = config.budget_of(teacher), space.with_order(NATURAL)
    genomes = [Genome(natural, with_rows(teacher, rows)) for rows in sizes_to_try(config, space, teacher)]
    fitting = [genome for genome in genomes if genome.fits(budget, config.length)]
    if not fitting:
        max(genomes, key=lambda one: one.teacher.structure.vocab_size).check_budget(budget, config.length)
    return budget, fitting


def search_workers(config: SearchConfig) -> int:
    """Trials at once on this machine: by its usable CPUs, and where they run on GPUs, by those too."""
    machine = config.machine
    if machine.workers is not None:
        return machine.workers
    count = default_workers(machine.threads)
    if machine.address or device_of(machine.device) == "cpu":
        return count
    there = {"CPU": count * machine.threads, "GPU": torch.cuda.device_count()}
    return share_of("cuda", machine.threads, look_up_teacher(config.space.teacher).architecture).how_many_fit(there)


def written_sequences(config: SearchConfig) -> int:
    """How many of the sequences that weights are fitted on the teacher writes; the others come from the corpus."""
    wanted = config.reconstruction
    if wanted.reconstruct == "none":
        return 0
    return int(max(1, wanted.reconstruct_tokens // config.length) * wanted.teacher_text + 1e-9)


def tokens_to_write(config: SearchConfig) -> int:
    """How many tokens the teacher writes, those put aside included; they are kept in the cache."""
    wanted = written_sequences(config)
    return num_to_write(wanted, config.length) * config.length if wanted else 0


class _Texts:
    """Packs parts of corpora in the search's sequences, and checks that the teacher has a row for every token id."""

    def __init__(self, config: SearchConfig, teacher: Teacher, rows: int, console: Console) -> None:
        self.config, self.teacher, self.rows, self.console = config, teacher, rows, console
        self.tokenizer = teacher.tokenizer()

    def pack(self, corpus: Corpus, part: str, num_tokens: int, flag: str | None = None) -> TokenShards:
        found = prepare_tokens(
            corpus, self.tokenizer, part, num_tokens=num_tokens, sequence_length=self.config.length,
            cache=cache_folder() / "tokens", console=self.console, flag=flag,
        )  # fmt: skip
        found.check_ids(self.rows, f"teacher {self.teacher.name}")
        return found

    def other(self) -> TokenShards | None:
        """The held-out part of another corpus, where one was given."""
        measure = self.config.measure
        if not measure.other_data:
            return None
        corpus = load_corpus(measure.other_data, self.config.data.text_field, self.console)
        return self.pack(corpus, HELD_OUT, measure.other_tokens, "--other-tokens")

    def own_fit(self, corpus: Corpus, train: TokenShards) -> TokenShards | None:
        """Tokens of the corpus to fit weights on; where it has too few, those that scores are learned from."""
        if self.config.reconstruction.reconstruct == "none":
            return None
        length = self.config.length
        tokens = max(self.config.reconstruction.reconstruct_tokens, length) - written_sequences(self.config) * length
        try:
            return self.pack(corpus, TRAIN, tokens, "--reconstruct-tokens")
        except UserError as error:
            if train.num_tokens >= tokens:
                raise
            self.console.line(f"{error}; weights are fitted on the {train.num_tokens:,} tokens that scores are learned "
                              "from")  # fmt: skip
            return train


def with_fit_text(config: SearchConfig, inputs: SearchInputs, console: Console) -> SearchInputs:
    """The inputs with the tokens that weights are fitted on, for which the teacher writes its share."""
    own, num_written = inputs.own_fit, written_sequences(config)
    assert own is not None
    inputs.teacher.state_as(DTYPES["fp32"])
    if not num_written:
        return dataclasses.replace(inputs, reconstruction=mix(own, None, 0))
    length = config.length
    if own is inputs.train:  # the corpus has no more: the teacher's share is of what there is
        share = config.reconstruction.teacher_text
        num_written = int(own.num_sequences * share / (1 - share) + 1e-9)
    inputs = with_teacher_text(config, inputs, console)
    ids = inputs.by_teacher
    assert ids is not None
    aside = num_aside(length)
    return dataclasses.replace(
        inputs, reconstruction=mix(own, ids[:-aside], num_written), aside=ids[-aside:]
    )  # fmt: skip


def with_teacher_text(config: SearchConfig, inputs: SearchInputs, console: Console) -> SearchInputs:
    """The inputs with text that the teacher writes, unless it has."""
    if inputs.by_teacher is not None:
        return inputs
    sequences = max(tokens_to_write(config) // config.length, num_aside(config.length))
    ids, was_cached = teacher_text(inputs.teacher, *inputs.here, sequences, config.length, console)
    return dataclasses.replace(inputs, by_teacher=ids, written_tokens=0 if was_cached else ids.size)


def with_general_text(config: SearchConfig, inputs: SearchInputs, console: Console) -> SearchInputs:
    """The inputs with calibration text that tells what any vocabulary is worth, where candidates have several.

    A share of it is the teacher's own: the user's text alone would not miss a token that only other text needs.
    """
    general, length = config.space.general, config.length
    if len(inputs.vocabularies.sizes) == 1 or not general:
        return inputs
    inputs, calibration = with_teacher_text(config, inputs, console), inputs.calibration
    assert inputs.by_teacher is not None
    share = max(1, round(calibration.num_sequences * general / (1 - general)))
    return dataclasses.replace(
        inputs, calibration=mix(calibration, inputs.by_teacher[-num_aside(length) :], share)
    )  # fmt: skip


def _vocabularies(
    config: SearchConfig, space: SearchSpace, teacher: Teacher, corpus: Corpus, console: Console
) -> Vocabularies:
    """The vocabularies to try, and which tokens they keep."""
    architecture, axis = teacher.architecture(), space.axes.get(VOCABULARY)
    sizes, tokenizer = sizes_to_try(config, space, architecture), teacher.tokenizer()
    if sizes == (None,):
        if axis is not None and not config.space.keep_vocabulary:
            console.line(
                "note: all tokens stay: a vocabulary this small is kept, and kl and finalists compare models over one"
            )
        return Vocabularies()
    by_id = axis is not None and axis.order == NATURAL
    try:
        found = Vocabularies(sizes, keep_order(tokenizer, None if by_id else corpus, config.space.general))
        for size in sizes:
            found.kept(size)
    except UserError as error:
        if config.space.vocabulary is not None:
            raise
        console.line(f"note: {error}")
        return Vocabularies()
    named = ", ".join(f"{size or len(tokenizer):,}" for size in sizes)
    console.line(f"vocabulary: {named} of {len(tokenizer):,} tokens; perplexities are per token of the teacher")
    return found


def prepare_inputs(config: SearchConfig, console: Console, kept_precision: str | None = None) -> SearchInputs:
    """Load and check everything a search reads."""
    space = space_of(config)
    if warning := space.width_warning():
        console.line(f"note: {warning}")
    teacher = load_teacher(config.space.teacher)
    architecture = teacher.architecture()
    budget, _ = check_fits(config, space, architecture)
    corpus = load_corpus(
        config.data.data, config.data.text_field, console, by_teacher=lambda: corpus_by(teacher, console)
    )
    device, asked = device_of(config.machine.device, config.machine.address), config.measure.precision
    precision = kept_precision or measure_precision(asked, device)
    texts = _Texts(config, teacher, architecture.structure.vocab_size, console)
    calibration = texts.pack(corpus, CALIBRATION, config.measure.calibration_tokens)
    train = texts.pack(corpus, TRAIN, config.scores.tokens)
    held_out = texts.pack(corpus, HELD_OUT, config.measure.held_out_tokens)
    other = texts.other()
    teacher.state_as(DTYPES[precision])  # made here once, so that no two workers make it at the same time
    gain = f" (products in bf16 {bf16_gain():.1f}× as fast)" if (asked, device) == ("auto", "cpu") else ""
    text = f"{calibration.num_tokens:,} calibration tokens"
    console.line(f"teacher {teacher.name}, {budget}, {text}, {precision} on {device}{gain}")
    return SearchInputs(
        teacher, architecture, space, budget, corpus, calibration, train, held_out, precision, device,
        own_fit=texts.own_fit(corpus, train), other=other, other_name=config.measure.other_data or "",
        vocabularies=_vocabularies(config, space, teacher, corpus, console),
    )  # fmt: skip
