"""Suites: names for the sets of tasks that papers report, and what tasks are called in tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Suite:
    """Tasks that are reported together.

    Attributes:
        tasks: Names of lm-eval's tasks or groups, in order, with the examples before each question.
        about: Where the choice comes from.
    """

    tasks: Mapping[str, int]
    about: str


SUITES: Mapping[str, Suite] = {
    "inheritune": Suite(
        {
            "wsc273": 0, "piqa": 0, "boolq": 0, "winogrande": 0, "logiqa": 0, "truthfulqa_mc1": 0, "truthfulqa_mc2": 0,
            "mnli": 0, "qnli": 0, "wnli": 0, "mmlu": 5,
        },
        "Inheritune (arXiv 2404.08634): nine tasks zero-shot, MMLU with five examples",
    ),
    "pythia": Suite(
        {
            "lambada_openai": 0, "piqa": 0, "winogrande": 0, "wsc": 0, "arc_easy": 0, "arc_challenge": 0, "sciq": 0,
            "logiqa": 0,
        },
        "Pythia (arXiv 2304.01373): the tasks of its tables, zero-shot; --shots 5 gives the other half of them",
    ),
    "small": Suite(
        {
            "arc_easy": 0, "arc_challenge": 0, "hellaswag": 0, "piqa": 0, "sciq": 0, "lambada_openai": 0, "blimp": 0,
        },
        "tasks on which models of 100M parameters differ from chance and from one another",
    ),
    "swahili": Suite(
        {
            "xcopa_sw": 0, "xstorycloze_sw": 0, "global_piqa_nonparallel_cloze_swh_latn": 0, "bhs_swahili": 0,
            "xnli_sw": 0, "afrixnli_native_direct_swa": 0, "belebele_swh_Latn": 0, "global_mmlu_sw": 0,
        },
        "Swahili: common sense, grammar, inference, reading and knowledge, as far as a metric needs no download",
    ),
}  # fmt: skip

_TITLES: Mapping[str, str] = {
    "wsc273": "WSC273", "wsc": "WSC", "piqa": "PIQA", "boolq": "BoolQ", "winogrande": "WinoGrande", "logiqa": "LogiQA",
    "truthfulqa_mc1": "TruthfulQA MC1", "truthfulqa_mc2": "TruthfulQA MC2", "mnli": "MNLI", "qnli": "QNLI",
    "wnli": "WNLI", "mmlu": "MMLU", "arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge", "hellaswag": "HellaSwag",
    "sciq": "SciQ", "lambada_openai": "LAMBADA", "blimp": "BLiMP", "xcopa_sw": "XCOPA sw",
    "xstorycloze_sw": "XStoryCloze sw", "global_piqa_nonparallel_cloze_swh_latn": "Global PIQA sw",
    "bhs_swahili": "BHS sw", "xnli_sw": "XNLI sw", "afrixnli_native_direct_swa": "AfriXNLI sw",
    "belebele_swh_Latn": "Belebele sw", "global_mmlu_sw": "Global MMLU sw", "openbookqa": "OpenBookQA",
}  # fmt: skip

# Answers of very different lengths: their accuracy is reported with the likelihood divided by the answer's length
# (HellaSwag's and ARC-Challenge's usual figure since the Open LLM Leaderboard; OpenBookQA's and PIQA's in OLMo's).
_LENGTH_NORMALISED = ("hellaswag*", "arc_challenge*", "piqa", "openbookqa", "global_piqa_*")
ACC, ACC_NORM = "acc", "acc_norm"


def title_of(name: str, alias: str | None) -> str:
    """What a task or group is called in tables.

    Args:
        name: lm-eval's name.
        alias: What lm-eval shows in its place, if anything.
    """
    return _TITLES.get(name) or alias or name


def main_metric(name: str, metrics: tuple[str, ...]) -> str:
    """The metric that stands for a task: ``acc_norm`` where that is usual, else ``acc``, else the first.

    Args:
        name: The task.
        metrics: Its metrics, in lm-eval's order.
    """
    if ACC_NORM in metrics and any(fnmatchcase(name, pattern) for pattern in _LENGTH_NORMALISED):
        return ACC_NORM
    return ACC if ACC in metrics else metrics[0]
