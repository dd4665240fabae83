"""``slm-ray tokenizer``: train one, or extend or trim a model's together with the model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from slm_ray.config.base import Config, add_flags, load_config, option
from slm_ray.config.digest import digest_json, sha256_file
from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.parser import Parser
from slm_ray.data.config import DEFAULT_CORPUS
from slm_ray.data.corpus import Corpus
from slm_ray.data.load import load_corpus
from slm_ray.data.split import HELD_OUT, sample_part
from slm_ray.data.tokenizer_extension import ExtendedTokenizer, extend_tokenizer, match_extension
from slm_ray.data.tokenizer_training import check_size, text_sample, train_tokenizer
from slm_ray.data.tokenizers import load_tokenizer
from slm_ray.records.base import write_record
from slm_ray.records.data import BytesPerToken, ExtendedVocabulary, TrainedTokenizer, TrimmedVocabulary
from slm_ray.records.files import cache_folder, read_json, whole_folder, write_text
from slm_ray.records.lineage import CARD_FILE, Lineage, find_lineage
from slm_ray.runtime.commands import command_line, run_command
from slm_ray.runtime.progress import Console

TRAIN, EXTEND, TRIM, EXCHANGE = "train", "extend", "trim", "exchange"
ACTIONS = (TRAIN, EXTEND, TRIM, EXCHANGE)
_MEASURED_CHARACTERS = 200_000


class TokenizerConfig(Config):
    """The options of the command."""

    data: str = option(DEFAULT_CORPUS, "corpus to learn tokens from: its train part is read")
    text_field: str = option("text", "field of the text in JSONL, CSV, parquet, arrow and hub corpora")
    size: int = option(8192, "train: tokens in all", ge=1)
    model: str | None = option(None, "extend, trim, exchange: model folder, hub id, .gguf file or smollm2-135m")
    add: int = option(4096, "extend, exchange: new tokens", ge=1)
    keep: int = option(16384, "trim, exchange: tokens in all, new ones among them", ge=1)
    general: float = option(0.2, "trim, exchange: share of any other text in what tokens are worth", ge=0, le=1)
    tokenizer: str | None = option(None, "extend: folder of a tokenizer extended before, instead of learning tokens")
    out: str | None = option(None, "folder to write; the same command again leaves it as it is")

    def check(self, action: str) -> None:
        """Check what needs no other files than ``tokenizer``."""
        if action not in ACTIONS:
            raise unknown_name("action", action, ACTIONS)
        if not self.out:
            raise UserError("--out is missing: give the folder to write")
        if action != TRAIN and not self.model:
            raise UserError(f"--model is missing: give the model whose vocabulary 'slm-ray tokenizer {action}' changes")
        if action == TRAIN:
            if given := [name for name in ("model", "tokenizer") if getattr(self, name)]:
                raise UserError(f"--{given[0]} belongs to 'extend': leave it out, or say extend")
            check_size(self.size)
        if action == EXCHANGE and self.add >= self.keep:
            raise UserError(f"--add {self.add:,} must be less than --keep {self.keep:,}, the tokens in all")
        if self.tokenizer and not (Path(self.tokenizer).expanduser() / "tokenizer.json").is_file():
            raise UserError(f"--tokenizer {self.tokenizer} has no tokenizer.json: give a folder that 'extend' wrote")


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog="python -m slm_ray.tokenizer", description="Train a tokenizer; change a model's vocabulary.")
    parser.add_argument("action", metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("--config", type=Path, default=None, help="YAML file of options; flags come over it")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    add_flags(parser, TokenizerConfig)
    return parser


def main(argv: Sequence[str]) -> int:
    """Write a tokenizer's folder, or a model's with an extended, trimmed or exchanged vocabulary."""
    given = vars(make_parser().parse_args(list(argv)))
    config_file, action = given.pop("config"), given.pop("action")
    given.pop("debug")
    config = load_config(TokenizerConfig, config_file, given)
    config.check(action)
    out, console = Path(str(config.out)).expanduser(), Console()
    if action == TRAIN:
        _train(config, out, console)
    elif action == EXTEND:
        _extend(config, out, command_line("python -m slm_ray.tokenizer", argv), console)
    else:
        _trim(config, config.add if action == EXCHANGE else 0, out, console)
    return 0


def _is_there(out: Path, made_from: Mapping[str, JsonValue]) -> bool:
    """Whether the folder holds what would be written."""
    if not out.exists():
        return False
    path = out / TrainedTokenizer.FILE
    if path.is_file() and read_json(path).get("made_from") == digest_json(made_from):
        print(f"{out} is there already, made from the same")
        return True
    raise UserError(f"{out} exists already and is something else: choose another --out, or delete it")


def _train(config: TokenizerConfig, out: Path, console: Console) -> None:
    corpus = load_corpus(config.data, config.text_field, console)
    made_from: dict[str, JsonValue] = {"action": TRAIN, "corpus": corpus.identity, "size": config.size}
    if _is_there(out, made_from):
        return
    tokenizer = train_tokenizer(corpus, config.size, cache_folder() / "tokenizers", console)
    record = TrainedTokenizer(
        made_from=digest_json(made_from), corpus=corpus.name, corpus_digest=corpus.digest, tokens=len(tokenizer),
        bytes_per_token=bytes_per_token(tokenizer, corpus),
    )  # fmt: skip
    with whole_folder(out) as folder:
        tokenizer.save_pretrained(folder)
        write_record(folder, record)
    print(f"a tokenizer of {len(tokenizer):,} tokens is in {out}; held-out text: {_rate(record.bytes_per_token)}")


def _extend(config: TokenizerConfig, out: Path, command: str, console: Console) -> None:
    from slm_ray.models.extraction import save_student
    from slm_ray.models.loading import load_student, quiet_transformers
    from slm_ray.models.teachers import loadable
    from slm_ray.models.vocabulary import extend_vocabulary
    from slm_ray.records.lineage import Lineage
    from slm_ray.report.cards import vocabulary_card

    name = str(config.model)
    source = loadable(name)
    corpus = load_corpus(config.data, config.text_field, console)
    made_from: dict[str, JsonValue] = {"action": EXTEND, "model": _model_digest(source), "corpus": corpus.identity}
    if config.tokenizer:
        made_from["tokenizer"] = sha256_file(Path(config.tokenizer).expanduser() / "tokenizer.json")
    else:
        made_from["add"] = config.add
    if _is_there(out, made_from):
        return
    old = load_tokenizer(source, f"{name} has no tokenizer that could be loaded")
    extended = _extension(config, old, corpus)
    model = extend_vocabulary(load_student(source, name), extended.first_new, extended.parts)
    rates = BytesPerToken(before=bytes_per_token(old, corpus), after=bytes_per_token(extended.tokenizer, corpus))
    record = ExtendedVocabulary(
        made_from=digest_json(made_from), model=name, corpus=corpus.name, corpus_digest=corpus.digest,
        first_new=extended.first_new, new_tokens=len(extended.parts),
        rows=model.get_input_embeddings().weight.shape[0], bytes_per_token=rates,
    )  # fmt: skip
    with whole_folder(out) as folder, quiet_transformers():
        save_student(model, folder)
        extended.tokenizer.save_pretrained(folder)
        write_record(folder, record)
        found = _lineage(name)
        if found is not None:
            write_record(folder, found.model_copy(update={"vocabulary": record}))
        remote_code = "auto_map" in read_json(folder / "config.json")
        card = vocabulary_card(record, found or Lineage(), remote_code=remote_code, command=command)
        write_text(folder / CARD_FILE, card)
    print(
        f"{name} with {record.new_tokens:,} new tokens ({record.rows:,} rows) is in {out}; held-out text: "
        f"{_rate(rates.before)} before, {_rate(rates.after)} now"
    )


def _trim(config: TokenizerConfig, add: int, out: Path, console: Console) -> None:
    """Keep a model's tokens that the text needs most, ``add`` fewer where so many are learned on it in their place."""
    from slm_ray.models.extraction import extract, save_student
    from slm_ray.models.loading import quiet_transformers
    from slm_ray.models.teachers import load_teacher
    from slm_ray.models.vocabulary import extend_vocabulary, renumbered_generation, with_vocabulary
    from slm_ray.records.lineage import Lineage
    from slm_ray.records.training import TeacherSource
    from slm_ray.search.vocabulary import keep_order

    teacher = load_teacher(str(config.model))
    corpus = load_corpus(config.data, config.text_field, console)
    made_from: dict[str, JsonValue] = {
        "action": TRIM, "model": teacher.digest, "corpus": corpus.identity, "keep": config.keep,
        "general": config.general,
    }  # fmt: skip
    if add:
        made_from["add"] = add
    if _is_there(out, made_from):
        return
    order = keep_order(teacher.tokenizer(), corpus, config.general)
    kept = order.first(config.keep - add)
    trimmed, old = order.vocabulary.trim(kept), order.vocabulary.tokenizer
    spec = with_vocabulary(teacher.architecture(), kept)
    model = extract(teacher.state(), teacher.config(), teacher.family(), spec)
    if (settings := teacher.generation_config()) is not None:
        model.generation_config = renumbered_generation(settings, kept)
    if add:
        extended = extend_tokenizer(trimmed, text_sample(corpus), add)
        trimmed, model = extended.tokenizer, extend_vocabulary(model, extended.first_new, extended.parts)
    rates = BytesPerToken(before=bytes_per_token(old, corpus), after=bytes_per_token(trimmed, corpus))
    record = TrimmedVocabulary(
        made_from=digest_json(made_from), model=str(config.model), corpus=corpus.name, corpus_digest=corpus.digest,
        general=config.general, new_tokens=add, rows=model.get_input_embeddings().weight.shape[0],
        bytes_per_token=rates,
    )  # fmt: skip
    source = TeacherSource(
        name=teacher.name, family=teacher.architecture().structure.family, digest=teacher.digest,
        licence=teacher.licence,
    )  # fmt: skip
    with whole_folder(out) as folder, quiet_transformers():
        save_student(model, folder, trimmed)
        write_record(folder, record)
        write_record(folder, Lineage(teacher=source, spec=spec.to_json()))
    new = f" and {add:,} new ones" if add else ""
    print(
        f"{config.model} with {len(kept):,} of its {order.vocabulary.size:,} tokens{new} is in {out}; held-out text: "
        f"{_rate(rates.before)} before, {_rate(rates.after)} now"
    )


def _model_digest(source: str) -> JsonValue:
    folder = Path(source).expanduser()
    files = [file for pattern in ("config.json", "tokenizer.json", "*.safetensors") for file in folder.glob(pattern)]
    return {file.name: sha256_file(file) for file in sorted(files)} or str(source)


def _lineage(name: str) -> Lineage | None:
    """A winner's lineage with what its search cost, which its old place tells; None for any other model."""
    from slm_ray.pretrain.inputs import search_flops

    found = find_lineage(name)
    return found and found.model_copy(update={"search_flops": search_flops(name)})


def _extension(config: TokenizerConfig, old: Any, corpus: Corpus) -> ExtendedTokenizer:
    if config.tokenizer is None:
        return extend_tokenizer(old, text_sample(corpus), config.add)
    return match_extension(old, load_tokenizer(Path(config.tokenizer).expanduser(), local=True))


def bytes_per_token(tokenizer: Any, corpus: Corpus) -> float | None:
    """UTF-8 bytes that a token stands for, in a sample of the held-out part; None where there is no such part."""
    pieces = sample_part(corpus, HELD_OUT, 4096, _MEASURED_CHARACTERS).pieces
    if not pieces:
        return None
    found = tokenizer(pieces, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return sum(len(piece.encode()) for piece in pieces) / max(1, sum(map(len, found)))


def _rate(value: float | None) -> str:
    return "there is none" if value is None else f"{value:.2f} bytes a token"


if __name__ == "__main__":
    sys.exit(run_command(main))
