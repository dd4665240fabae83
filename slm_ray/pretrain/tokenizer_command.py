"""``python -m slm_ray.tokenizer``: train a tokenizer, or extend a model and its tokenizer with a language's words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json, sha256_file
from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.options import add_command_flags, at_least, load_config, option
from slm_ray.config.parser import Parser
from slm_ray.data.config import DEFAULT_CORPUS
from slm_ray.data.corpus import Corpus
from slm_ray.data.load import load_corpus
from slm_ray.data.split import HELD_OUT, sample_part
from slm_ray.data.tokenizer_extension import ExtendedTokenizer, extend_tokenizer, match_extension
from slm_ray.data.tokenizer_training import text_sample, train_tokenizer
from slm_ray.records.files import cache_folder, read_json, whole_folder, write_json, write_text
from slm_ray.records.lineage import CARD_FILE, LINEAGE_FILE, read_lineage
from slm_ray.report.vocabulary_card import vocabulary_card
from slm_ray.runtime.commands import command_line, run_command
from slm_ray.runtime.progress import Console

TRAIN, EXTEND = "train", "extend"
ACTIONS = (TRAIN, EXTEND)
RECORD_FILE = "vocabulary.json"
_MEASURED_CHARACTERS = 200_000


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The options of the command."""

    data: str = option(DEFAULT_CORPUS, "corpus to learn words from: its train part is read")
    text_field: str = option("text", "field of the text in JSONL, parquet and hub corpora")
    size: int = option(8192, "train: tokens in all", check=at_least(1))
    model: str = option(None, "extend: model folder, hub id, .gguf file or smollm2-135m", kind=str)
    add: int = option(4096, "extend: new tokens", check=at_least(1))
    tokenizer: str = option(None, "extend: folder of a tokenizer extended before, instead of learning words", kind=str)
    out: str = option(None, "folder to write; the same command again leaves it as it is", kind=str)

    def check(self, action: str) -> None:
        """Check what needs no files.

        Raises:
            UserError: An option is missing, or belongs to the other action.
        """
        if action not in ACTIONS:
            raise unknown_name("action", action, ACTIONS)
        if not self.out:
            raise UserError("--out is missing: give the folder to write")
        if action == EXTEND and not self.model:
            raise UserError("--model is missing: give the model whose vocabulary is to be extended")
        given = [name for name in ("model", "tokenizer") if getattr(self, name)] if action == TRAIN else []
        if given:
            raise UserError(f"--{given[0]} belongs to 'extend': leave it out, or say extend")
        if self.tokenizer and not (Path(self.tokenizer).expanduser() / "tokenizer.json").is_file():
            raise UserError(f"--tokenizer {self.tokenizer} has no tokenizer.json: give a folder that 'extend' wrote")


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog="python -m slm_ray.tokenizer", description="Train a tokenizer, or extend a model's.")
    parser.add_argument("action", metavar="ACTION", help=" or ".join(ACTIONS))
    add_command_flags(parser, TokenizerConfig, dry_run="")
    return parser


def main(argv: Sequence[str]) -> int:
    """Write a tokenizer's folder, or a model's with an extended vocabulary.

    Args:
        argv: The arguments.

    Returns:
        0 when done.

    Raises:
        UserError: Something the user can fix.
    """
    given = vars(make_parser().parse_args(list(argv)))
    config_file, action = given.pop("config"), given.pop("action")
    given.pop("debug")
    config = load_config(TokenizerConfig, config_file, given)
    config.check(action)
    out, console = Path(config.out).expanduser(), Console()
    if action == TRAIN:
        _train(config, out, console)
    else:
        _extend(config, out, command_line("python -m slm_ray.tokenizer", argv), console)
    return 0


def _is_there(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether the folder holds what would be written.

    Raises:
        UserError: Something else is there.
    """
    if not out.exists():
        return False
    record = out / RECORD_FILE
    if record.is_file() and read_json(record).get("made_from") == digest_json(made_from):
        print(f"{out} is there already, made from the same")
        return True
    raise UserError(f"{out} exists already and is something else: choose another --out, or delete it")


def _train(config: TokenizerConfig, out: Path, console: Console) -> None:
    corpus = load_corpus(config.data, config.text_field, console)
    made_from = {"action": TRAIN, "corpus": corpus.identity, "size": config.size}
    if _is_there(out, made_from):
        return
    tokenizer = train_tokenizer(corpus, config.size, cache_folder() / "tokenizers", console)
    rate = bytes_per_token(tokenizer, corpus)
    with whole_folder(out) as folder:
        tokenizer.save_pretrained(folder)
        write_json(folder / RECORD_FILE, {
            "made_from": digest_json(made_from), "corpus": corpus.name, "corpus_digest": corpus.digest,
            "tokens": len(tokenizer), "bytes_per_token": rate,
        })  # fmt: skip
    print(f"a tokenizer of {len(tokenizer):,} tokens is in {out}; held-out text: {_rate(rate)}")


def _extend(config: TokenizerConfig, out: Path, command: str, console: Console) -> None:
    from transformers import AutoTokenizer

    from slm_ray.models.extraction import save_student
    from slm_ray.models.loading import load_student, one_sentence, quiet_transformers
    from slm_ray.models.teachers import loadable
    from slm_ray.models.vocabulary import extend_vocabulary

    source = loadable(config.model)
    corpus = load_corpus(config.data, config.text_field, console)
    made_from = {
        "action": EXTEND, "model": _model_digest(source), "corpus": corpus.identity,
        **({"tokenizer": sha256_file(Path(config.tokenizer).expanduser() / "tokenizer.json")} if config.tokenizer
           else {"add": config.add}),
    }  # fmt: skip
    if _is_there(out, made_from):
        return
    with one_sentence(f"{config.model} has no tokenizer that could be loaded"):
        old = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    extended = _extension(config, old, corpus)
    model = extend_vocabulary(load_student(source, config.model), extended.first_new, extended.parts)
    before, after = bytes_per_token(old, corpus), bytes_per_token(extended.tokenizer, corpus)
    record = {
        "made_from": digest_json(made_from), "model": config.model, "corpus": corpus.name,
        "corpus_digest": corpus.digest, "first_new": extended.first_new, "new_tokens": len(extended.parts),
        "rows": model.get_input_embeddings().weight.shape[0], "bytes_per_token": {"before": before, "after": after},
    }  # fmt: skip
    with whole_folder(out) as folder, quiet_transformers():
        save_student(model, folder)
        extended.tokenizer.save_pretrained(folder)
        write_json(folder / RECORD_FILE, record)
        found = _lineage(config.model)
        if found:
            write_json(folder / LINEAGE_FILE, found | {"vocabulary": record})
        remote_code = "auto_map" in read_json(folder / "config.json")
        write_text(folder / CARD_FILE, vocabulary_card(record, found, remote_code=remote_code, command=command))
    print(
        f"{config.model} with {len(extended.parts):,} new tokens ({record['rows']:,} rows) is in {out}; held-out text: "
        f"{_rate(before)} before, {_rate(after)} now"
    )


def _model_digest(source: str) -> Any:
    folder = Path(source).expanduser()
    files = [file for pattern in ("config.json", "tokenizer.json", "*.safetensors") for file in folder.glob(pattern)]
    return {file.name: sha256_file(file) for file in sorted(files)} or str(source)


def _lineage(name: str) -> dict[str, Any]:
    """What a winner says of where it came from, with what its search cost, which its old place tells."""
    from slm_ray.pretrain.inputs import search_flops

    found = read_lineage(name)
    cost = search_flops(name) if found else None
    return found | ({"search_flops": cost} if cost is not None else {}) if found else {}


def _extension(config: TokenizerConfig, old: Any, corpus: Corpus) -> ExtendedTokenizer:
    from transformers import AutoTokenizer

    if config.tokenizer is None:
        return extend_tokenizer(old, text_sample(corpus), config.add)
    folder = Path(config.tokenizer).expanduser()
    new = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return match_extension(old, new)


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
