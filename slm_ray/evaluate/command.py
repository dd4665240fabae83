"""``python -m slm_ray.evaluate``: models side by side on text, tasks, generation and efficiency."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.options import add_command_flags, build_config, load_config, refuse_changes
from slm_ray.config.parser import Parser
from slm_ray.evaluate.config import MAY_CHANGE, SEVERAL, EvaluateConfig
from slm_ray.records.files import read_json, write_json
from slm_ray.report.evaluation_records import MODELS_FOLDER, RESULT_FILE
from slm_ray.runtime.commands import command_line
from slm_ray.runtime.runfolder import CONFIG_FILE, RunFolder, find_run

PROG = "python -m slm_ray.evaluate"


def make_parser() -> Parser:
    """The command's parser; ``--model``, ``--data`` and ``--tasks`` may be given several times."""
    parser = Parser(
        prog=PROG, conflict_handler="resolve",
        description="Measure models side by side: held-out text, lm-eval's tasks, generation, efficiency.",
    )  # fmt: skip
    add_command_flags(parser, EvaluateConfig, dry_run="say what would be measured, and measure nothing")
    parser.add_argument("--resume", type=Path, metavar="RUN", default=None, help="go on with an evaluation's folder")
    for field in dataclasses.fields(EvaluateConfig):
        if field.name in SEVERAL:
            flag, text = "--" + field.name, field.metadata["help"].replace("%", "%%")
            parser.add_argument(flag, action="append", default=None, metavar=field.name.upper(), help=text)
    return parser


def main(argv: Sequence[str]) -> int:
    """Evaluate; the same command again measures only what is not measured yet.

    Args:
        argv: The arguments.

    Returns:
        0 when done.

    Raises:
        UserError: Something the user can fix; what was measured is kept.
    """
    given = vars(make_parser().parse_args(list(argv)))
    config_file, resume = given.pop("config"), given.pop("resume")
    dry_run = given.pop("dry_run")
    given.pop("debug")
    for name in SEVERAL:
        values = given.pop(name)
        if values:
            given[name] = ",".join(values)
    config = _resumed(resume, given, config_file) if resume else load_config(EvaluateConfig, config_file, given)
    config.check()
    from slm_ray.evaluate.run import describe, evaluate

    out = Path(config.out) if config.out else Path("runs") / f"evaluate-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    if dry_run:
        describe(config, out)
        return 0
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(out)  # its lock: one process at a time writes results
    try:
        # An evaluation's folder gathers: it may be used again for other models and measurements.
        write_json(folder.file(CONFIG_FILE), config.to_json())
        folder.mirror_to(config.storage)
        evaluate(config, folder, command_line(PROG, argv))
    except UserError:
        if is_new and not folder.file(MODELS_FOLDER).exists() and not folder.file(RESULT_FILE).exists():
            folder.forget()
        raise
    finally:
        folder.close()
    return 0


def _resumed(resume: Path, given: dict[str, Any], config_file: Path | None) -> EvaluateConfig:
    """The options of an earlier evaluation, with those that may change as they are given now."""
    refuse_changes(given, config_file, MAY_CHANGE, "evaluation")
    find_run(resume, given.get("storage"))
    stored = read_json(resume / CONFIG_FILE)
    return build_config(EvaluateConfig, stored | given | {"out": str(resume)}, source=str(resume / CONFIG_FILE))
