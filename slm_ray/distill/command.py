"""``python -m slm_ray.logits``: keep what a teacher says at every token, to distill from again and again."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slm_ray.config.errors import UserError
from slm_ray.config.options import add_command_flags, at_least, load_config, option
from slm_ray.config.parser import Parser
from slm_ray.config.units import format_bytes, format_count, format_seconds, parse_number
from slm_ray.data import DEFAULT_CORPUS
from slm_ray.distill.store_format import STORE_KINDS, TOP_K
from slm_ray.models.bundled import BUNDLED_NAME
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import cache_folder
from slm_ray.runtime.commands import run_command
from slm_ray.runtime.progress import Console
from slm_ray.runtime.storage import STORAGE_HELP

if TYPE_CHECKING:
    from slm_ray.data.shards import TokenShards
    from slm_ray.distill.capture_settings import CaptureSettings

DEFAULT_TOKENS, DEFAULT_LENGTH = "300k", 512
# Measured on SmolLM2-135M and the default corpus; only estimates depend on these.
_WORDS_PER_DRAW = 0.25  # different words, of 50 draws
_SLOWDOWN = {"bf16": 4.0, "fp32": 1.5}  # a forward pass over its matrix multiplications alone
_START_SECONDS = 20.0
_RATE_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class LogitsConfig:
    """The options of a capture."""

    teacher: str = option(BUNDLED_NAME, "hub id, model folder, .gguf file, or the bundled default")
    data: str = option(None, f"corpus to prepare tokens from [default: {DEFAULT_CORPUS}]", kind=str)
    text_field: str = option(None, "field of the text in records [default: text]", kind=str)
    tokens: str = option(None, f"at least so many tokens: 300k, 20M, all [default: {DEFAULT_TOKENS}]", kind=str)
    sequence_length: int = option(None, f"tokens per sequence [default: {DEFAULT_LENGTH}]", check=at_least(2), kind=int)
    shards: str = option(None, "folder of prepared token shards, instead of the four options above", kind=str)
    kind: str = option(TOP_K, "the likeliest words and the mass of the rest, or words drawn", choices=STORE_KINDS)
    k: int = option(32, "words kept of a token, for top-k", check=at_least(1))
    draws: int = option(50, "draws for a token, for sampled", check=at_least(1))
    temperature: float = option(
        1.0, "softmax temperature of the teacher", check=lambda value: None if value > 0 else "must be above 0"
    )
    seed: int = option(0, "seed of the draws", check=at_least(0))
    documents: str = option("separate", "attention stays inside a document, or not", choices=("separate", "joined"))
    precision: str = option(
        "auto", "compute type; auto: bf16 where it is multiplied natively", choices=("auto", "fp32", "bf16")
    )
    device: str = option("cpu", "where the teacher runs; cuda: one GPU per worker", choices=("cpu", "cuda"))
    workers: int = option(None, "teachers at once [default: usable CPUs / threads]", check=at_least(1), kind=int)
    threads: int = option(1, "threads, and CPUs, of each worker", check=at_least(1))
    address: str = option(None, "Ray cluster to join, e.g. auto [default: start one here]", kind=str)
    storage: str = option(None, STORAGE_HELP.replace("--resume", "the same command"), kind=str)
    out: str = option(None, "what the store is to be called", kind=str)

    def check(self) -> None:
        """Check what needs no files.

        Raises:
            UserError: Options are missing, or do not go together.
        """
        if not self.out:
            raise UserError("--out is missing: say what the store is to be called")
        of_text = ("data", "text_field", "tokens", "sequence_length")
        given = [name for name in of_text if getattr(self, name) is not None]
        if self.shards and given:
            flag = "--" + given[0].replace("_", "-")
            raise UserError(f"{flag} and --shards are both given: prepared shards have their own text; leave one out")
        self.num_tokens()

    def num_tokens(self) -> int | None:
        """Tokens to prepare; None for all there are.

        Raises:
            UserError: ``--tokens`` is no count.
        """
        text = self.tokens or DEFAULT_TOKENS
        if text == "all":
            return None
        count = int(parse_number(text))
        if count < 1 or "%" in text:
            raise UserError(f"--tokens must be a count like 300k or 20M, or all, got '{text}'")
        return count


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog="python -m slm_ray.logits", description="Keep what a teacher says at every token.")
    add_command_flags(parser, LogitsConfig, dry_run="print what would be captured and what it costs; capture nothing")
    return parser


def main(argv: Sequence[str]) -> int:
    """Capture a store; the same command again goes on where an earlier one ended.

    Args:
        argv: The arguments.

    Returns:
        0 when done.

    Raises:
        UserError: Something the user can fix.
    """
    given = vars(make_parser().parse_args(list(argv)))
    config_file, dry_run = given.pop("config"), given.pop("dry_run")
    given.pop("debug")
    config = load_config(LogitsConfig, config_file, given)
    config.check()
    return _print_plan(config) if dry_run else _capture(config)


def _capture(config: LogitsConfig) -> int:
    from slm_ray.data.shards import TokenShards
    from slm_ray.distill.capture import capture, check_place
    from slm_ray.distill.store_mirror import mirrored_store
    from slm_ray.models.teachers import load_teacher
    from slm_ray.runtime.session import default_workers, ray_session

    console = Console()
    check_place(Path(config.out))
    teacher = load_teacher(config.teacher)
    settings, ready = (
        _settings(config),
        TokenShards.open(Path(config.shards).expanduser().resolve()) if config.shards else None,
    )
    length = ready.sequence_length if ready else config.sequence_length or DEFAULT_LENGTH
    settings.check(teacher.architecture().structure, length)
    workers = config.workers or default_workers(config.threads)
    copy = mirrored_store(Path(config.out), config.storage, console)
    with ray_session(config.address, workers * config.threads), copy:
        shards = ready or _prepare(config, teacher.folder, console, workers * config.threads)
        store = capture(
            teacher, shards, settings, Path(config.out), console=console, workers=workers, threads=config.threads,
            device=config.device,
        )  # fmt: skip
    manifest = store.manifest
    print(
        f"{config.out}: {store.num_sequences:,} sequences of {store.sequence_length} tokens, {store.kind}, "
        f"{store.ids_per_token():.1f} words and {store.bytes_per_token():.1f} bytes a token\n"
        f"teacher {manifest['teacher']['name']}: {format_count(manifest['flops'])} FLOPs in "
        f"{format_seconds(manifest['seconds'])} of all workers together\n"
        f"tokens: {shards.folder}"
    )
    return 0


def _prepare(config: LogitsConfig, tokenizer: Path, console: Console, workers: int) -> TokenShards:
    from slm_ray.data import TRAIN, load_corpus
    from slm_ray.data.prepare import prepare_shards

    corpus = load_corpus(config.data or DEFAULT_CORPUS, config.text_field or "text", console)
    return prepare_shards(
        corpus, tokenizer, TRAIN, sequence_length=config.sequence_length or DEFAULT_LENGTH,
        num_tokens=config.num_tokens(), cache=cache_folder() / "shards", console=console, workers=workers,
    )  # fmt: skip


def _settings(config: LogitsConfig) -> CaptureSettings:
    from slm_ray.distill.capture_settings import CaptureSettings
    from slm_ray.models.precision import choose_precision

    fields = {field.name for field in dataclasses.fields(CaptureSettings)}
    values = {name: value for name, value in dataclasses.asdict(config).items() if name in fields}
    return CaptureSettings(**values | {"precision": choose_precision(config.precision, config.device)})


def _print_plan(config: LogitsConfig) -> int:
    """What would be captured and what it costs; nothing is downloaded or converted."""
    from slm_ray.data.shards import TokenShards
    from slm_ray.distill.capture import check_place
    from slm_ray.models.teacher_sizes import look_up_teacher
    from slm_ray.runtime.session import default_workers

    check_place(Path(config.out))
    settings, teacher = _settings(config), look_up_teacher(config.teacher)
    architecture = teacher.architecture
    if architecture is None:
        print(f"teacher          {teacher.name}: {teacher.note}")
        return 0
    length, tokens = config.sequence_length or DEFAULT_LENGTH, config.num_tokens()
    if config.shards:
        shards = TokenShards.open(Path(config.shards))
        length, tokens = shards.sequence_length, shards.num_tokens
    settings.check(architecture.structure, length)
    workers = config.workers or default_workers(config.threads)
    per_token, per_position = flops_per_token(architecture, length), bytes_per_token(config, architecture)
    rows = {name: str(value) for name, value in dataclasses.asdict(config).items() if value is not None}
    rows |= {"precision": settings.precision, "workers": str(workers)}
    print("".join(f"{name.ljust(16)} {value}\n" for name, value in rows.items()))
    print(f"FLOPs a token     {format_count(per_token)}\nbytes a token     about {per_position:.0f}")
    if tokens is None:
        print("tokens           all of the corpus's train part: known once they are prepared")
        return 0
    print(f"tokens            {'' if config.shards else 'about '}{tokens:,}, in sequences of {length}")
    print(f"disk              about {format_bytes(per_position * tokens)}")
    print(f"FLOPs             {format_count(per_token * tokens)}")
    if config.device == "cpu":
        rate = _multiplication_rate(architecture, settings.precision, config.threads) * workers
        seconds = _START_SECONDS + per_token * tokens * _SLOWDOWN[settings.precision] / rate
        print(f"time              about {format_seconds(seconds)}, at the speed of this machine's processor when idle")
    return 0


def bytes_per_token(config: LogitsConfig, architecture: Architecture) -> float:
    """Bytes stored for a token; of draws, as many as a small model's text needs."""
    id_bytes = 2 if architecture.structure.vocab_size <= 1 << 16 else 4
    if config.kind == TOP_K:
        return config.k * (id_bytes + 2) + 2
    count_bytes = 1 if config.draws < 1 << 8 else 2
    return count_bytes + max(1.0, config.draws * _WORDS_PER_DRAW) * (id_bytes + count_bytes)


def _multiplication_rate(architecture: Architecture, precision: str, threads: int) -> float:
    """FLOPs per second of one worker at a matrix multiplication of the teacher's sizes."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    inputs = torch.randn(512, architecture.hidden_size).to(dtype)
    weights = torch.randn(4 * architecture.hidden_size, architecture.hidden_size).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < _RATE_SECONDS or not count:
            torch.nn.functional.linear(inputs, weights)
            count += 1
    finally:
        torch.set_num_threads(before)
    return 2 * inputs.numel() * len(weights) * count / passed


if __name__ == "__main__":
    sys.exit(run_command(main))
