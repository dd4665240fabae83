"""``slm-ray evaluate``: models side by side on text, tasks, generation and efficiency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slm_ray.config.base import flatten
from slm_ray.config.errors import UserError
from slm_ray.evaluate.config import MAY_CHANGE, EvaluateConfig
from slm_ray.records.base import read_record
from slm_ray.records.evaluation import EvaluationResult
from slm_ray.records.run import RunRecord
from slm_ray.runtime.runfolder import LOG_FILE, RunFolder
from slm_ray.runtime.stage import Stage

if TYPE_CHECKING:
    from slm_ray.runtime.progress import Console

TABLE_FILE = "table.txt"


def _out(config: EvaluateConfig, time: str) -> str:
    return f"runs/evaluate-{time}"


def _plan(config: EvaluateConfig) -> str:
    from slm_ray.evaluate.run import describe

    return describe(config, Path(config.out or _out(config, "TIME")))


def _execute(config: EvaluateConfig, folder: RunFolder) -> None:
    """Measure, and make everything that is made from the result."""
    from slm_ray.evaluate.run import evaluate
    from slm_ray.runtime.progress import Console

    console = Console(folder.file(LOG_FILE))
    command = read_record(folder.path, RunRecord).command
    evaluation = evaluate(config, folder, command, console)
    _publish(config, folder.path, console)
    if evaluation.failures:
        if any(evaluation.records.values()):
            _show(folder.path)
        evaluation.fail()


def _publish(config: EvaluateConfig, out: Path, console: Console) -> None:
    """The table, the report, the tracker's copy and the cards: all made from the result."""
    from slm_ray.records.files import write_text
    from slm_ray.report.evaluation_card import add_evaluation
    from slm_ray.report.evaluation_report import evaluation_text, write_evaluation_report
    from slm_ray.report.tracked import send_results
    from slm_ray.runtime.trackers import group_of, make_tracker

    result = read_record(out, EvaluationResult)
    write_text(out / TABLE_FILE, evaluation_text(result) + "\n")
    write_evaluation_report(out)
    if config.tracker != "none":
        given = (("tasks", config.benchmarks.tasks), ("generation", config.generation.prompts))
        tracker = make_tracker(
            config.tracker, out, group=group_of(out), job_type="evaluate", tags=[name for name, on in given if on],
            config=flatten(config), say=console.line,
        )  # fmt: skip
        send_results(tracker, out)
        tracker.finish()
    for model in result.models if config.cards else ():
        if model.role == "model" and not model.error:
            try:
                add_evaluation(Path(model.folder), result, model.name)
            except UserError as error:
                console.line(f"no card for {model.name}: {error}")


def _show(out: Path) -> None:
    print((out / TABLE_FILE).read_text(encoding="utf-8"))
    print(f"results: {out / EvaluationResult.FILE}; report: {out / 'report.html'}")


EVALUATE = Stage(
    name="evaluate",
    summary="measure models side by side: held-out text, lm-eval's tasks, generation, efficiency",
    config=EvaluateConfig,
    execute=_execute,
    show=_show,
    plan=_plan,
    result_file=EvaluationResult.FILE,
    may_change=MAY_CHANGE,
    default_out=_out,
    gathers=True,
)
main = EVALUATE.main
