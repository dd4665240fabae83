"""``slm-ray STAGE …``: the stages under one name; each is also ``python -m slm_ray.STAGE``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.version import VERSION
from slm_ray.runtime.commands import run_command


class Entry(NamedTuple):
    """A command's module, imported only when it is run, and its line for ``--help``."""

    module: str  # declares ``NAME = Stage(…)`` (:mod:`slm_ray.runtime.stage`), or has a ``main(argv)`` of its own
    summary: str


STAGES = {
    "search": Entry("slm_ray.search.command", "search a teacher for its best sub-networks and extract them"),
    "proxies": Entry("slm_ray.studies.proxies_command", "how well each proxy agrees with quality after training"),
    "logits": Entry("slm_ray.distill.command", "write a teacher's logits to a store, to distill from it many times"),
    "tokenizer": Entry("slm_ray.tokenizer", "train a tokenizer, or extend a model's vocabulary"),
    "pretrain": Entry("slm_ray.pretrain.command", "train winners and other starts with the teacher's help"),
    "evaluate": Entry("slm_ray.evaluate.command", "measure models on the same held-out text and compare them"),
    "rate": Entry("slm_ray.evaluate.rating.command", "people compare what models wrote: a blinded page, and its table"),
    "export": Entry("slm_ray.export.command", "write a model as GGUF, or as a plain model of its family"),
    "sweep": Entry("slm_ray.studies.command", "run a sweep file: many runs, one table, its plots"),
    "report": Entry("slm_ray.report.command", "rebuild the table, picture and pages of runs from their records"),
    "dashboard": Entry("slm_ray.dashboard", "a W&B workspace or report of all runs"),
    "pipeline": Entry("slm_ray.pipeline", "all of these after one another, each where it is needed"),
}


def _command(name: str) -> Any:
    """What has a stage's ``main``: its :class:`slm_ray.runtime.stage.Stage`, or its module."""
    module = importlib.import_module(STAGES[name].module)
    return getattr(module, name.upper(), module)


def parser_of(name: str) -> argparse.ArgumentParser:
    """A stage's parser."""
    command = _command(name)
    parser: argparse.ArgumentParser = command.parser() if hasattr(command, "parser") else command.make_parser()
    return parser


def help_text() -> str:
    """What ``slm-ray --help`` prints."""
    width = max(map(len, STAGES))
    stages = "\n".join(f"  {name.ljust(width)}  {stage.summary}" for name, stage in STAGES.items())
    return (
        "usage: slm-ray STAGE [OPTIONS]\n\n"
        "Search a pretrained language model for its best sub-networks, on Ray.\n\n"
        f"stages:\n{stages}\n\n"
        "slm-ray STAGE --help   the options of a stage\n"
        "slm-ray --version      the version\n"
    )


def dispatch(argv: Sequence[str]) -> int:
    """Run the stage that the first argument names."""
    if not argv:
        raise UserError(f"name a stage: {', '.join(sorted(STAGES))} (see slm-ray --help)")
    first, *rest = argv
    if first in ("--help", "-h", "help"):
        print(help_text(), end="")
        return 0
    if first == "--version":
        print(f"slm-ray {VERSION}")
        return 0
    if first not in STAGES:
        raise unknown_name("stage", first, STAGES)
    status: int = _command(first).main(rest)
    return status


def main() -> int:
    """Entry point of the ``slm-ray`` script."""
    return run_command(dispatch)


if __name__ == "__main__":
    sys.exit(main())
