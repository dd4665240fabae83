"""The pipeline's options: a few common ones, and every option of its stages in sections of one YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from slm_ray.config.base import Config, Count, Text, build_config, build_section, flatten, option, options_of
from slm_ray.config.errors import ConfigError, UserError, nearest
from slm_ray.config.yaml_files import read_yaml
from slm_ray.distill.config import SPARSE_KINDS, LogitsConfig
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.models.bundled import TEACHER_HELP
from slm_ray.pretrain.config import DISTILL, PretrainConfig
from slm_ray.runtime.storage import STORAGE_HELP
from slm_ray.search.config import SearchConfig

C = TypeVar("C", bound=Config)
SECTIONS: dict[str, type[Config]] = {
    "search": SearchConfig, "logits": LogitsConfig, "pretrain": PretrainConfig, "evaluate": EvaluateConfig,
}  # fmt: skip
DEFAULT_OUT = "runs/pipeline"

# Which options the pipeline itself sets, and what from.
_SET_HERE = {
    "search": {"out": "--out", "storage": "--storage"},
    "logits": {
        "out": "--out", "teacher": "pretrain.teacher", "data": "pretrain.data", "text_field": "pretrain.text_field",
        "tokens": "pretrain.tokens", "sequence_length": "pretrain.sequence_length", "shards": "pretrain.shards",
        "documents": "pretrain.documents", "kind": "pretrain.distill", "temperature": "pretrain.temperature",
    },
    "pretrain": {"out": "--out", "student": "the search's winners", "store": "the logits stage"},
    "evaluate": {"out": "--out", "storage": "--storage"},
}  # fmt: skip


class PipelineConfig(Config):
    """The common options; each goes to the stages that have one of that name."""

    teacher: str | None = option(None, TEACHER_HELP)
    data: str | None = option(None, "corpus: python-docs, python-docs-full, a file or folder, or a hub id")
    params: Text | None = option(None, "parameter budget of the search: 0.5, 60M, 60M..70M")
    tokens: Count | None = option(None, "tokens to train each model on, e.g. 300k or 20M", metavar="COUNT")
    distill: str | None = option(None, f"the teacher's signal in pretraining ({', '.join(DISTILL)})")
    compare: bool | None = option(None, "train random and first-n starts too, and compare them")
    storage: str | None = option(None, STORAGE_HELP.replace("--resume", "the same command"))
    out: str = option(DEFAULT_OUT, "folder of all stages; the same command again continues in it")


# Common option to the sections that have it.
_COMMON = {
    "teacher": ("search", "pretrain"), "data": ("search", "pretrain"), "params": ("search",), "tokens": ("pretrain",),
    "distill": ("pretrain",), "compare": ("pretrain",),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What every stage is run with."""

    out: Path  # The pipeline's folder
    storage: str | None  # Where that is kept as well
    search: SearchConfig  # Options of the search
    logits: LogitsConfig | None  # Of the capture; None where distillation reads no store
    pretrain: PretrainConfig  # Of pretraining; its students are those that the search is expected to find
    evaluate: EvaluateConfig  # Of the evaluation; its models are those the user adds


def read_options(config_file: Path | None, flags: Mapping[str, Any]) -> Options:
    """Resolve every stage's options: defaults, then the file's common options, its sections, and the flags.

    ``config_file``: YAML with common options and sections, or None.
    """
    loaded = read_yaml(config_file) if config_file is not None else {}
    if not isinstance(loaded, dict | None):
        raise UserError(f"{config_file} must hold sections and options, got {type(loaded).__name__}")
    reader = _Reader(str(config_file) if config_file is not None else "options", dict(flags))
    return reader.read({str(key).replace("-", "_"): value for key, value in (loaded or {}).items()})


class _Reader:
    """Builds the sections one after another and gathers what is wrong."""

    def __init__(self, source: str, flags: dict[str, Any]) -> None:
        self.source, self.flags, self.problems = source, flags, list[str]()

    def read(self, loaded: dict[str, Any]) -> Options:
        top = {name: value for name, value in loaded.items() if name not in SECTIONS}
        known = set(options_of(PipelineConfig))
        for name in sorted(set(top) - known):
            self.problems.append(f"{name}: no such section or option; {nearest(name, [*SECTIONS, *known])}")
            del top[name]
        try:
            common = build_config(PipelineConfig, top | self.flags)
        except ConfigError as error:
            self.problems += error.problems
            common = PipelineConfig()
        given = {name: self._common(name, top) | self._section(name, loaded.get(name)) | self._common(name, self.flags)
                 for name in SECTIONS}  # fmt: skip
        out = Path(common.out)
        search = self._build("search", SearchConfig, {"winners": 1} | given["search"] | {"out": str(out / "search")})
        pretrain = self._build("pretrain", PretrainConfig, self._pretrain_values(out, search, given["pretrain"]))
        names = ("data", "text_field", "eval_tokens", "sequence_length", "documents")
        inherited = {name: value for name, value in (flatten(pretrain) if pretrain else {}).items() if name in names}
        evaluate = self._build(
            "evaluate", EvaluateConfig, inherited | given["evaluate"] | {"out": str(out / "evaluate")}
        )
        logits = self._logits(out, search, pretrain, given["logits"])
        if search and pretrain:
            try:
                pretrain.check_given()
            except UserError as error:
                self.problems.append(f"pretrain: {error}")
        if self.problems or not (search and pretrain and evaluate):
            raise ConfigError(self.source, self.problems)
        return Options(out, common.storage, search, logits, pretrain, evaluate)

    def _section(self, name: str, value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{name}: must hold options, got {value!r}")
            return {}
        given = {str(key).replace("-", "_"): entry for key, entry in value.items()}
        for option_name in sorted(set(given) & set(_SET_HERE[name])):
            self.problems.append(f"{name}.{option_name}: comes from {_SET_HERE[name][option_name]}; leave it out")
            del given[option_name]
        return given

    @staticmethod
    def _common(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name, sections in _COMMON.items() if section in sections and name in values}

    def _build(self, section: str, cls: type[C], given: Mapping[str, Any]) -> C | None:
        return build_section(cls, given, section, self.problems)

    def _pretrain_values(self, out: Path, search: SearchConfig | None, given: dict[str, Any]) -> dict[str, Any]:
        found = flatten(search) if search else {"winners": 1}
        winners = found["winners"]
        students = ",".join(str(out / "search" / "winners" / str(number)) for number in range(winners))
        inherited = {name: found[name] for name in ("teacher", "data", "text_field") if name in found}
        values = inherited | given | {"student": students, "out": str(out / "pretrain")}
        reads_store = values.get("distill") in SPARSE_KINDS
        return values | ({"store": str(out / "logits")} if reads_store else {})

    def _logits(
        self, out: Path, search: SearchConfig | None, pretrain: PretrainConfig | None, given: dict[str, Any]
    ) -> LogitsConfig | None:
        """The capture of exactly the tokens that pretraining reads."""
        known = flatten(pretrain) if pretrain else {}
        reads_store = known.get("distill") in SPARSE_KINDS
        if given and pretrain and not reads_store:
            self.problems.append(
                f"logits: pretrain.distill {known['distill']} reads no store; leave the section out, or give "
                "pretrain.distill: top-k"
            )
        if not (search and pretrain and reads_store):
            self._build("logits", LogitsConfig, given)
            return None
        kind = "sampled" if known["distill"] == "sampled" else "top-k"
        values = {"out": str(out / "logits"), "kind": kind, **{name: known[name] for name in ("teacher", "documents")}}
        values["temperature"] = 1.0 if known["distill"] == "top-k" else known["temperature"]
        if known["shards"]:
            values["shards"] = known["shards"]
        else:
            values |= {name: known[name] for name in ("data", "text_field", "sequence_length")}
            values["tokens"] = str(pretrain.num_data_tokens)
        return self._build("logits", LogitsConfig, given | values)
