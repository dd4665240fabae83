"""Inheritune, whole (arXiv 2404.08634): train a model's first layers, and add its next ones while they are too few."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count, format_seconds
from slm_ray.models.teachers import Teacher, load_teacher
from slm_ray.pretrain.first_checkpoint import write_first_checkpoint
from slm_ray.pretrain.growth_steps import Measurement, grow, inherit, measure_on_ray, stage_depths
from slm_ray.pretrain.inputs import PretrainInputs, keep_digests, prepare_inputs
from slm_ray.pretrain.job import TrainJob
from slm_ray.pretrain.lineage import ORIGIN, describe_teacher, origin_of
from slm_ray.pretrain.process_group import choose_device
from slm_ray.pretrain.results import MODEL_FILE, RESULT_FILE, finish_model
from slm_ray.pretrain.run import PretrainRun, make_job, resources_of
from slm_ray.pretrain.tracking import track_results
from slm_ray.records.files import read_json, write_json, write_text
from slm_ray.report import build_training_report
from slm_ray.runtime.environment import usable_cpus

GROWTH_FILE = "growth.json"


class GrowingRun(PretrainRun):
    """One command's growth: stages of ever more layers, each a model of its own, until one reaches the reference."""

    def execute(self) -> None:
        """Grow until the reference is reached or no layers are left, and leave a finished run folder.

        Raises:
            UserError: Something the user can fix went wrong; finished stages are kept.
        """
        self.console.line(f"run folder: {self.folder.path}")
        source = load_teacher(self.config.students()[0])
        layers = source.architecture().num_hidden_layers
        depths = stage_depths(layers, self.config.grow_from, self.config.grow_by)
        with self._ray():
            inputs = prepare_inputs(self.config, self.folder, self.console, usable_cpus())
            keep_digests(self.folder, inputs)
            self._say_inputs(inputs)
            growth = self._growth(inputs, source) | {"source_layers": layers}
            results = self._train_stages(inputs, source, depths, growth["reference_loss"])
        self._finish(results, growth)

    def _growth(self, inputs: PretrainInputs, source: Teacher) -> dict[str, Any]:
        """What grows and what it must reach, kept in the run folder: the reference is measured once.

        Raises:
            UserError: A resumed run's source is no longer the model it was.
        """
        path = self.folder.file(GROWTH_FILE)
        if not path.exists():
            given = self.config.reference_loss
            loss = self._measure(inputs, source) if given is None else given
            write_json(path, {
                "source": source.name, "source_digest": source.digest, "reference_loss": loss,
                "reference_from": source.name if given is None else "--reference-loss",
            })  # fmt: skip
        growth: dict[str, Any] = read_json(path)
        if growth["source_digest"] != source.digest:
            raise UserError(
                f"{self.folder.path} cannot be resumed: the model it grows from was {growth['source_digest']}, now "
                f"{source.digest}: restore it, or start a new run"
            )
        self.console.line(f"reference loss {growth['reference_loss']:.4f}, of {growth['reference_from']}")
        return growth

    def _measure(self, inputs: PretrainInputs, source: Teacher) -> float:
        config = self.config
        measurement = Measurement(
            str(source.folder), source.name, str(inputs.held_out.folder), config.documents == "separate",
            config.precision,
        )  # fmt: skip
        if config.launcher == "local":
            return measurement.run(choose_device(config.device))
        resources = resources_of(config, 1)
        return measure_on_ray(measurement, resources.threads, resources.use_gpu)

    def _train_stages(
        self, inputs: PretrainInputs, source: Teacher, depths: tuple[int, ...], reference: float
    ) -> list[dict[str, Any]]:
        """The results of all stages that were needed, finished ones read from the folder."""
        results: list[dict[str, Any]] = []
        before: TrainJob | None = None
        for number, layers in enumerate(depths):
            before = job = self._stage(inputs, source, number, layers, before)
            self._train([job])
            result = finish_model(self.folder.path / job.name, job, self.folder.path) | {"layers": layers}
            if result["status"] == "failed":
                raise UserError(
                    f"the stage of {layers} layers failed ({result['error']}); the stages before it are kept: continue "
                    f"with --resume {self.folder.path}"
                )
            results.append(result)
            loss = final_loss(result)
            if loss <= reference:
                break
            next_step = f"growing to {depths[number + 1]}" if layers < depths[-1] else "there are no more"
            self.console.line(f"{layers} layers: loss {loss:.4f} is above the reference {reference:.4f}; {next_step}")
        return results

    def _stage(
        self, inputs: PretrainInputs, source: Teacher, number: int, layers: int, before: TrainJob | None
    ) -> TrainJob:
        """One stage's job; its first checkpoint is made of the stage before, if that is not done yet."""
        (student,) = inputs.students
        name = f"{student.label}.layers{layers}"
        folder, storage = self.folder.path / name, self._storage(name)
        if not (folder / MODEL_FILE).exists():
            model, optimizer = (
                (inherit(source, layers), {}) if before is None else grow(source, layers, before.storage, before.name)
            )
            described = write_first_checkpoint(
                model, student.tokenizer, self.config.sequence_length, storage, source.name, optimizer
            )
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / MODEL_FILE, described | {
                "start": "first-n" if before is None else "grown", "source": student.source,
                "grown_from": before and before.name, "search_flops": student.search_flops,
                ORIGIN: origin_of(student, "first-n", inputs, self.config.distill)
                | {"lineage": {"teacher": describe_teacher(source)}},
            })  # fmt: skip
        # Every stage reads the tokens in an order of its own, as further epochs do.
        seed, model_json = self.config.seeds()[0] + number, read_json(folder / MODEL_FILE)
        return make_job(self.config, inputs, name, storage, seed, model_json, self.config.total_steps())

    def _finish(self, results: list[dict[str, Any]], growth: dict[str, Any]) -> None:
        """Write the run's result and table, and print the table."""
        growth |= summary_of(results, growth["reference_loss"])
        lines = [*growth_table(results, growth["reference_loss"]), "", closing_sentence(growth)]
        write_text(self.folder.file("table.txt"), "\n".join(lines) + "\n")
        print("\n".join(lines))
        write_json(self.folder.file(RESULT_FILE), {"command": self.command, "models": results, "growth": growth})
        build_training_report(self.folder.path)
        track_results(self.config, self.folder.path, self.console)
        self.console.line(f"{results[-1]['name']}: {self.folder.path / Path(results[-1]['model'])}")


def final_loss(result: dict[str, Any]) -> float:
    """The held-out loss of a stage's last step; infinite where it is no number."""
    loss = result["evals"][-1]["loss"]
    return math.inf if loss is None else float(loss)


def summary_of(results: list[dict[str, Any]], reference: float) -> dict[str, Any]:
    """What growth came to: the sufficient depth (None if no stage reached the reference) and what all stages cost."""
    last = results[-1]
    return {
        "sufficient_layers": last["layers"] if final_loss(last) <= reference else None,
        "layers": last["layers"],
        "final_loss": last["evals"][-1]["loss"],
        "stages": len(results),
        "tokens": sum(result["tokens"] for result in results),
        "flops": {kind: sum(result["flops"][kind] for result in results) for kind in ("own", "teacher", "capture")},
        "seconds": sum(result["seconds"] for result in results),
    }


def growth_table(results: list[dict[str, Any]], reference: float) -> list[str]:
    """One line per stage."""
    lines = [
        f"{'stage':32} {'layers':>6} {'params':>8} {'tokens':>8} {'first loss':>10} {'final loss':>10} "
        f"{'reference':>9} {'above it':>9} {'time':>12}"
    ]
    for result in results:
        first, last = result["evals"][0]["loss"], final_loss(result)
        lines.append(
            f"{result['name']:32} {result['layers']:>6} {format_count(result['params']):>8} "
            f"{format_count(result['tokens']):>8} {math.inf if first is None else first:>10.4f} {last:>10.4f} "
            f"{reference:>9.4f} {last - reference:>+9.4f} {format_seconds(result['seconds']):>12}"
        )
    return lines


def closing_sentence(growth: dict[str, Any]) -> str:
    """What growth found."""
    loss = math.inf if growth["final_loss"] is None else growth["final_loss"]
    stages = "1 stage" if growth["stages"] == 1 else f"{growth['stages']} stages"
    flops = growth["flops"]["own"] + growth["flops"]["teacher"]
    spent = f"{stages}, {format_count(growth['tokens'])} tokens and {flops:.2e} FLOPs"
    target = f"the reference {growth['reference_loss']:.4f} of {growth['reference_from']}"
    if growth["sufficient_layers"] is None:
        return (
            f"even all {growth['source_layers']} layers did not reach {target}: their validation loss is {loss:.4f} "
            f"after {spent} in all; train longer (--tokens) or give a higher --reference-loss"
        )
    return (
        f"{growth['layers']} layers are enough: of the {growth['source_layers']} there are, they reach a validation "
        f"loss of {loss:.4f} against {target}, after {spent} in all"
    )
