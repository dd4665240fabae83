"""The stages that a sweep can run: whose options they have, which command runs them, what they leave when done."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import ConfigError, UserError, nearest
from slm_ray.config.options import build_config, check_config, defaults_of, flag_of, given_flags, replaced

# Options that say where a run is put or how it is watched. The sweep sets them; they are no part of what a point is.
SET_BY_SWEEP = ("out", "address", "tracker", "concurrent", "storage")


@dataclass(frozen=True)
class Stage:
    """A stage's command.

    Attributes:
        name: What it is called.
        module: The module whose ``main(argv)`` runs it.
        configs: Section to ``module:class`` of its options; one without sections has the section "".
        result: The file that it writes last; a folder that has it is done.
        resumes: Whether it takes ``--resume FOLDER``; the others go on when the same command is given again.
    """

    name: str
    module: str
    configs: Mapping[str, str]
    result: str
    resumes: bool = True

    def config_class(self, section: str = "") -> type:
        """The dataclass of its options."""
        module, _, name = self.configs[section].partition(":")
        found: type = getattr(importlib.import_module(module), name)
        return found

    def field_names(self) -> dict[str, tuple[str, str]]:
        """Every option, as a sweep file writes it, to its section and its field."""
        names = {}
        for section in self.configs:
            for field in defaults_of(self.config_class(section)):
                names[f"{section}.{field}" if section else field] = (section, field)
        return names

    def check_value(self, name: str, value: Any) -> str | None:
        """What is wrong with an option's value taken by itself; None where nothing is.

        Args:
            name: One of :meth:`field_names`.
            value: The value.
        """
        section, field = self.field_names()[name]
        try:
            build_config(self.config_class(section), {field: value})
        except ConfigError as error:
            own = [problem for problem in error.problems if problem.startswith(f"{flag_of(field)}:")]
            return own[0].partition(":")[2].strip() if own else None  # the others come from what is not given here
        return None

    def config(self, options: Mapping[str, Any], out: str) -> Any:
        """The stage's resolved options; a mapping of section to options for a stage of sections.

        Raises:
            UserError: Options do not go together.
        """
        sections: dict[str, dict[str, Any]] = {section: {} for section in self.configs}
        names = self.field_names()
        for name, value in options.items():
            section, field = names[name]
            sections[section][field] = value
        configs: dict[str, Any] = {
            section: build_config(self.config_class(section), given) for section, given in sections.items()
        }
        if set(configs) != {""}:
            return configs
        config = replaced(configs[""], out=out)
        action = action_of(self, config)
        check_config(config, *action)
        return config


_SEARCH, _PRETRAIN = "slm_ray.search.config:SearchConfig", "slm_ray.pretrain.config:PretrainConfig"
_TOKENIZER, _PROXIES = "slm_ray.tokenizer", "slm_ray.studies.proxies_config:ProxiesConfig"
_LOGITS, _EVALUATE = "slm_ray.distill.config:LogitsConfig", "slm_ray.evaluate.config:EvaluateConfig"
STAGES = {
    stage.name: stage
    for stage in (
        Stage("search", "slm_ray.search.command", {"": _SEARCH}, "result.json"),
        Stage("logits", "slm_ray.distill.command", {"": _LOGITS}, "manifest.json", resumes=False),
        Stage("pretrain", "slm_ray.pretrain.command", {"": _PRETRAIN}, "result.json"),
        Stage("evaluate", "slm_ray.evaluate.command", {"": _EVALUATE}, "evaluate.json"),
        Stage("tokenizer", _TOKENIZER, {"": f"{_TOKENIZER}:TokenizerConfig"}, "vocabulary.json", resumes=False),
        Stage("proxies", "slm_ray.studies.proxies_command", {"": _PROXIES}, "correlations.json"),
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

    close = difflib.get_close_matches(name, stage.field_names(), n=1, cutoff=0.5)
    offer = f"; did you mean '{close[0]}'?" if close else f"; see python -m slm_ray.{stage.name} --help"
    return f"{path}: no such option of {stage.name}{offer}"


def stage_of(name: str, path: str) -> Stage:
    """The stage of a name.

    Raises:
        UserError: There is none; the nearest is offered.
    """
    if name not in STAGES:
        raise UserError(f"{path}: no stage '{name}'; {nearest(name, STAGES)}")
    return STAGES[name]


def to_argv(config: Any) -> list[str]:
    """The words that give a config: one a flag, so that a value that begins with a dash is not taken for a flag."""
    return ["=".join(flag) for flag in given_flags(config)]


def is_done(stage: Stage, folder: Path) -> bool:
    """Whether a stage has left all of its output in a folder."""
    return (folder / stage.result).is_file()
