"""The stages that a sweep can run: whose options they have, which command runs them, what they leave when done."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.base import Config, build_config, flag_of, given_flag_pairs, options_of
from slm_ray.config.errors import ConfigError, UserError, nearest
from slm_ray.records.data import ExtendedVocabulary
from slm_ray.records.evaluation import EvaluationResult
from slm_ray.records.logits import StoreManifest
from slm_ray.records.proxies import ProxyReport
from slm_ray.records.search import SearchResult
from slm_ray.records.training import TrainResult

# Options that say where a run is put or how it is watched. The sweep sets them; they are no part of what a point is.
SET_BY_SWEEP = ("out", "address", "tracker", "concurrent", "storage")


@dataclass(frozen=True)
class Stage:
    """A stage's command."""

    name: str  # What it is called
    module: str  # The module whose ``main(argv)`` runs it
    options: str  # ``module:class`` of its config
    result: str  # The file that it writes last; a folder that has it is done
    resumes: bool = True  # Whether it takes ``--resume FOLDER``; the others go on when the same command is given again

    def config_class(self) -> type[Config]:
        """The class of its config."""
        module, _, name = self.options.partition(":")
        found: type[Config] = getattr(importlib.import_module(module), name)
        return found

    def names(self) -> list[str]:
        """Every option."""
        return list(options_of(self.config_class()))

    def check_value(self, name: str, value: Any) -> str | None:
        """What is wrong with an option's value taken by itself; None where nothing is."""
        try:
            build_config(self.config_class(), {name: value})
        except ConfigError as error:
            own = [problem for problem in error.problems if problem.startswith(f"{flag_of(name)}:")]
            return own[0].partition(":")[2].strip() if own else None  # the others come from what is not given here
        return None

    def config(self, options: Mapping[str, Any], out: str) -> Any:
        """The stage's config."""
        return build_config(self.config_class(), {**options, "out": out})


STAGES = {
    stage.name: stage
    for stage in (
        Stage("search", "slm_ray.search.command", "slm_ray.search.config:SearchConfig", SearchResult.FILE),
        Stage("logits", "slm_ray.distill.command", "slm_ray.distill.config:LogitsConfig", StoreManifest.FILE,
              resumes=False),
        Stage("pretrain", "slm_ray.pretrain.command", "slm_ray.pretrain.config:PretrainConfig", TrainResult.FILE),
        Stage("evaluate", "slm_ray.evaluate.command", "slm_ray.evaluate.config:EvaluateConfig", EvaluationResult.FILE),
        Stage("tokenizer", "slm_ray.tokenizer", "slm_ray.tokenizer:TokenizerConfig", ExtendedVocabulary.FILE,
              resumes=False),
        Stage("proxies", "slm_ray.studies.proxies_command", "slm_ray.studies.proxies_config:ProxiesConfig",
              ProxyReport.FILE),
    )
}  # fmt: skip


def action_of(stage: Stage, config: Any) -> list[str]:
    """What a command wants said before its options: the tokenizer's, whether it trains one or extends a model's."""
    if stage.name != "tokenizer":
        return []
    return ["extend" if config.model else "train"]


def normal_name(name: str) -> str:
    """An option's name with underscores, however it was written."""
    return name.strip().replace("-", "_")


def unknown_option(path: str, name: str, stage: Stage) -> str:
    """The sentence about an option that a stage does not have, with the nearest one."""
    import difflib

    close = difflib.get_close_matches(name, stage.names(), n=1, cutoff=0.5)
    offer = f"; did you mean '{close[0]}'?" if close else f"; see python -m slm_ray.{stage.name} --help"
    return f"{path}: no such option of {stage.name}{offer}"


def stage_of(name: str, path: str) -> Stage:
    """The stage of a name."""
    if name not in STAGES:
        raise UserError(f"{path}: no stage '{name}'; {nearest(name, STAGES)}")
    return STAGES[name]


def to_argv(config: Any) -> list[str]:
    """The words that give a config: one a flag, so that a value that begins with a dash is not taken for a flag."""
    return ["=".join(flag) for flag in given_flag_pairs(config)]


def is_done(stage: Stage, folder: Path) -> bool:
    """Whether a stage has left all of its output in a folder."""
    return (folder / stage.result).is_file()
