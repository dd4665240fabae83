"""``slm-ray logits``: keep a teacher's signal at every token, to distill from it again and again."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from slm_ray.config.base import add_flags, flatten, load_config
from slm_ray.config.errors import UserError
from slm_ray.config.parser import Parser
from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.data.config import TrainDataConfig
from slm_ray.data.shards import TokenShards
from slm_ray.distill.config import SAMPLED, LogitsConfig, different_length
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token
from slm_ray.records.data import ShardManifest
from slm_ray.records.files import cache_folder, read_json
from slm_ray.records.logits import work_folder
from slm_ray.runtime.commands import run_command
from slm_ray.runtime.forecast import SLOWDOWN
from slm_ray.runtime.mirror import Mirror, bring_back, lies_in_a_mirror
from slm_ray.runtime.progress import Console
from slm_ray.runtime.storage import storage_of

# Measured on SmolLM2-135M and the default corpus; only estimates depend on these.
_IDS_PER_DRAW = 0.25  # different ids, of 50 draws
_START_SECONDS = 20.0


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog="python -m slm_ray.logits", description="Keep a teacher's signal at every token.")
    parser.add_argument("--config", type=Path, default=None, help="YAML file of options; flags come over it")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be captured and what it costs; capture nothing"
    )
    parser.add_argument(
        "--verify", type=Path, default=argparse.SUPPRESS, metavar="FOLDER",
        help="read every file of a logit store, or of token shards, compare it with its digest, and do nothing else",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    add_flags(parser, LogitsConfig)
    return parser


def main(argv: Sequence[str]) -> int:
    """Capture a store; the same command again goes on where an earlier one ended."""
    given = vars(make_parser().parse_args(list(argv)))
    config_file, dry_run, folder = given.pop("config"), given.pop("dry_run"), given.pop("verify", None)
    given.pop("debug")
    if folder is not None:
        if given or dry_run or config_file:
            raise UserError(f"--verify {folder} does nothing else: leave the other options out")
        _verify(folder.expanduser())
        return 0
    config = load_config(LogitsConfig, config_file, given)
    if not config.out:
        raise UserError("--out is missing: give the folder of the store")
    if dry_run:
        _print_plan(config, Path(config.out))
    else:
        _capture(config, Path(config.out))
    return 0


def _verify(folder: Path) -> None:
    from slm_ray.distill.store import LogitStore

    began, path = time.monotonic(), folder / ShardManifest.FILE
    if path.is_file() and "shards" in read_json(path):
        TokenShards.open(folder).verify()
    else:
        LogitStore.open(folder).verify(Console())
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"{folder}: {format_bytes(size)}, as written ({format_seconds(time.monotonic() - began)})")


def _capture(config: LogitsConfig, out: Path) -> None:
    from slm_ray.distill.capture import capture, check_place, check_sizes, make_request
    from slm_ray.models.precision import choose_precision
    from slm_ray.models.teachers import load_teacher
    from slm_ray.models.vocabulary import on_ids_of
    from slm_ray.runtime.session import default_workers, ray_session

    console, text = Console(), config.text
    check_place(out)
    ready = _open_shards(config)
    teacher = load_teacher(config.teacher)
    if config.student:
        teacher = on_ids_of(config.student, teacher)
    structure = teacher.architecture().structure
    length = ready.sequence_length if ready else text.sequence_length
    check_sizes(config.capture, structure.vocab_size, structure.max_position_embeddings, length)
    workers = config.workers or default_workers(config.threads)
    session = ray_session(config.address, workers * config.threads, storage_of(config.storage))
    with session, _mirrored(out, config.storage, console):
        shards = ready or _prepare(config, teacher.folder, console, workers * config.threads)
        request = make_request(
            config.capture, teacher, shards, documents=text.documents,
            precision=choose_precision(config.capture.precision, config.device),
            num_sequences=config.num_sequences(length, shards.num_sequences),
        )  # fmt: skip
        store = capture(
            teacher, shards, request, out, console=console, workers=workers, threads=config.threads,
            device=config.device,
        )  # fmt: skip
    manifest = store.manifest
    of = f" of the {shards.num_sequences:,} prepared" if store.num_sequences < shards.num_sequences else ""
    print(
        f"{out}: {manifest.num_tokens:,} tokens, {store.num_sequences:,} sequences of {length}{of}, "
        f"{store.request.kind}, {store.ids_per_token():.1f} ids and {store.bytes_per_token():.1f} bytes a token\n"
        f"teacher {manifest.teacher.name}: {format_count(manifest.flops)} FLOPs in "
        f"{format_seconds(manifest.seconds)} of all workers together\n"
        f"tokens: {shards.folder}"
    )


def _open_shards(config: LogitsConfig) -> TokenShards | None:
    """The shards that were named; a sequence length that was given too must be theirs."""
    if not config.text.shards:
        return None
    shards, length = TokenShards.open(Path(config.text.shards).expanduser().resolve()), config.text.sequence_length
    if length not in (shards.sequence_length, TrainDataConfig().sequence_length):
        raise UserError(different_length(shards, length))
    return shards


def _prepare(config: LogitsConfig, tokenizer: Path, console: Console, workers: int) -> TokenShards:
    from slm_ray.data.load import load_corpus
    from slm_ray.data.prepare import prepare_shards
    from slm_ray.data.split import TRAIN

    corpus = load_corpus(config.text.data, config.text.text_field, console)
    return prepare_shards(
        corpus, tokenizer, TRAIN, sequence_length=config.text.sequence_length, num_tokens=config.num_tokens,
        cache=cache_folder() / "shards", console=console, workers=workers,
    )  # fmt: skip


@contextlib.contextmanager
def _mirrored(out: Path, storage: str | None, console: Console) -> Iterator[None]:
    """Fetch what there is of a store, and keep it at the storage while the block makes it."""
    place, work = storage_of(storage), work_folder(out)
    if not place or lies_in_a_mirror(out):
        yield
        return
    if not out.exists():
        bring_back(work, place, out.name)  # a whole one takes its name as one does that was killed just before
    now = out if out.exists() else work
    now.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(now, place, console.line, out.name)
    mirror.start()
    try:
        yield
    finally:
        mirror.stop(moved_to=out if out.exists() else work)


def _print_plan(config: LogitsConfig, out: Path) -> None:
    """What would be captured and what it costs; nothing is downloaded or converted."""
    import torch

    from slm_ray.distill.capture import check_place, check_sizes
    from slm_ray.models.precision import DTYPES, choose_precision
    from slm_ray.models.teacher_sizes import look_up_teacher
    from slm_ray.runtime.hardware import matmul_flops_per_second
    from slm_ray.runtime.session import default_workers

    check_place(out)
    shards = _open_shards(config)
    teacher = look_up_teacher(config.teacher)
    architecture = teacher.architecture
    if architecture is None:
        print(f"teacher          {teacher.name}: {teacher.note}")
        return
    structure = architecture.structure
    length = shards.sequence_length if shards else config.text.sequence_length
    check_sizes(config.capture, structure.vocab_size, structure.max_position_embeddings, length)
    if shards:
        shards.check_ids(structure.vocab_size, f"the teacher {teacher.name}")
    workers = config.workers or default_workers(config.threads)
    precision = choose_precision(config.capture.precision, config.device)
    per_token, per_position = flops_per_token(architecture, length), bytes_per_token(config, architecture)
    rows = {name: str(value) for name, value in flatten(config).items() if value is not None}
    rows |= {"precision": precision, "workers": str(workers)}
    print("".join(f"{name.ljust(16)} {value}\n" for name, value in rows.items()))
    print(f"FLOPs a token     {format_count(per_token)}\nbytes a token     about {per_position:.0f}")
    sequences = config.num_sequences(length, shards.num_sequences if shards else None)
    if sequences is None:
        print("tokens           all of the corpus's train part: known once they are prepared")
        return
    tokens = sequences * length
    print(f"tokens            {tokens:,}, {sequences:,} sequences of {length}, or all that there are")
    print(f"disk              about {format_bytes(per_position * tokens)}")
    print(f"FLOPs             {format_count(per_token * tokens)}")
    if config.device == "cpu":
        torch.set_num_threads(config.threads)
        width = min(2048, architecture.hidden_size)
        rate = workers * matmul_flops_per_second(torch.device("cpu"), DTYPES[precision], width)
        seconds = _START_SECONDS + per_token * tokens * SLOWDOWN[precision] / rate
        print(f"time              about {format_seconds(seconds)}, at the speed of this machine's processor when idle")


def bytes_per_token(config: LogitsConfig, architecture: Architecture) -> float:
    """Bytes stored for a token; of draws, as many as a small model's text needs."""
    id_bytes, kept = 2 if architecture.structure.vocab_size <= 1 << 16 else 4, config.capture
    if kept.kind != SAMPLED:
        return kept.k * (id_bytes + 2) + 2
    count_bytes = 1 if kept.draws < 1 << 8 else 2
    return count_bytes + max(1.0, kept.draws * _IDS_PER_DRAW) * (id_bytes + count_bytes)


if __name__ == "__main__":
    sys.exit(run_command(main))
