"""``python -m slm_ray.evaluate``: models side by side on the same held-out text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from slm_ray.core.commands import command_line
from slm_ray.core.config import Parser, add_command_flags, at_least, load_config, option
from slm_ray.core.errors import UserError
from slm_ray.core.runfolder import RunFolder
from slm_ray.data import DEFAULT_CORPUS

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The options of an evaluation."""

    model: str = option(None, "a model folder, hub id, .gguf file or smollm2-135m; give it once per model", kind=str)
    data: str = option(DEFAULT_CORPUS, "corpus: python-docs, python-docs-full, a file or folder, or a hub id")
    text_field: str = option("text", "field of the text in JSONL, parquet and hub corpora")
    eval_tokens: int = option(8192, "held-out tokens, of the first model's", check=at_least(2))
    sequence_length: int = option(512, "tokens per sequence", check=at_least(2))
    documents: str = option("separate", "attention stays inside a document, or not", choices=("separate", "joined"))
    precision: str = option("auto", "compute type; auto: bf16 where it is multiplied natively", choices=PRECISIONS)
    batch: int = option(4, "sequences at once", check=at_least(1))
    threads: int = option(None, "CPU threads [default: torch's own choice]", check=at_least(1), kind=int)
    device: str = option("auto", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))
    out: str = option(None, "folder of the results [default: runs/evaluate-TIME]", kind=str)

    def models(self) -> tuple[str, ...]:
        """The models, each once, in the order given.

        Raises:
            UserError: None was given.
        """
        names = tuple(dict.fromkeys(part.strip() for part in (self.model or "").split(",") if part.strip()))
        if not names:
            raise UserError("--model is missing: give a model folder, a hub id, a .gguf file or smollm2-135m")
        return names


def make_parser() -> Parser:
    """The command's parser; ``--model`` may be given several times."""
    parser = Parser(
        prog="python -m slm_ray.evaluate", conflict_handler="resolve",
        description="Measure models on the same held-out text: loss, perplexity and bits per byte, with differences.",
    )  # fmt: skip
    add_command_flags(parser, EvaluateConfig, dry_run="")
    model = next(field for field in dataclasses.fields(EvaluateConfig) if field.name == "model")
    parser.add_argument("--model", action="append", default=None, metavar="MODEL", help=model.metadata["help"])
    return parser


def main(argv: Sequence[str]) -> int:
    """Evaluate; the same command again measures only what is not measured yet.

    Args:
        argv: The arguments.

    Returns:
        0 when done.

    Raises:
        UserError: Something the user can fix.
    """
    given = vars(make_parser().parse_args(list(argv)))
    config_file, models = given.pop("config"), given.pop("model")
    given.pop("debug")
    if models:
        given["model"] = ",".join(models)
    config = load_config(EvaluateConfig, config_file, given)
    config.models()
    from slm_ray.evaluate.run import evaluate

    command = command_line("python -m slm_ray.evaluate", argv)
    out = Path(config.out) if config.out else Path("runs") / f"evaluate-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    out.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(out)  # its lock: one process at a time writes results
    try:
        evaluate(config, out, command)
    finally:
        folder.close()
    return 0
