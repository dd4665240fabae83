"""Inheritune, whole (arXiv 2404.08634): train a model's first layers, and add its next ones while they are too few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count, format_seconds
from slm_ray.data.shards import TokenShards
from slm_ray.evaluate.held_out import held_out_loss
from slm_ray.models.extraction import extract
from slm_ray.models.loading import load_student
from slm_ray.models.precision import DTYPES, choose_precision
from slm_ray.models.teachers import Teacher, load_teacher
from slm_ray.pretrain.batches import default_micro_batch
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.engine import Place, next_losses
from slm_ray.pretrain.forecast import first_layers, own_type, stage_depths
from slm_ray.pretrain.inputs import PretrainInputs, load_models
from slm_ray.pretrain.job import TrainJob
from slm_ray.pretrain.launch import resources_of
from slm_ray.pretrain.lineage import describe_teacher, origin_of
from slm_ray.pretrain.module import StudentLoss, check_logits
from slm_ray.pretrain.process_group import choose_device
from slm_ray.pretrain.results import finish_model, finish_run
from slm_ray.pretrain.run import PretrainRun, make_job, start_model
from slm_ray.pretrain.state import Tensors, read_state
from slm_ray.records.base import find_record, write_record
from slm_ray.records.lineage import Lineage
from slm_ray.records.training import GrowthGoal, GrowthResult, GrowthTarget, ModelOutcome, SpentFlops, TrainedModel
from slm_ray.runtime.fan_out import FanOut, Share
from slm_ray.runtime.shared import local_copy


class GrowingRun(PretrainRun):
    """One command's growth: stages of ever more layers, each a model of its own, until one reaches the reference."""

    def execute(self) -> None:
        """Grow until the reference is reached or no layers are left, and leave a finished run folder."""
        self.console.line(f"run folder: {self.folder.path}")
        source, growth = load_teacher(self.config.model.students[0]), self.config.growth
        depths = stage_depths(source.architecture().num_hidden_layers, growth.grow_from or 1, growth.grow_by)
        teacher, students = load_models(self.config, self.folder.path, self.console)
        with self._workers():
            inputs = self._prepare(teacher, students)
            target = self._target(inputs, source)
            results = self._train_stages(inputs, source, depths, target.reference_loss)
        found = summary_of(results, target)
        lines = [*growth_table(results, target.reference_loss), "", closing_sentence(found)]
        finish_run(self.config, self.folder.path, results, self.command, self.console, lines, found)

    def _target(self, inputs: PretrainInputs, source: Teacher) -> GrowthTarget:
        """What grows and what it must reach, kept in the run folder: the reference is measured once."""
        target = find_record(self.folder.path, GrowthTarget)
        if target is None:
            given = self.config.growth.reference_loss
            target = GrowthTarget(
                source=source.name, source_digest=source.digest,
                source_layers=source.architecture().num_hidden_layers,
                reference_loss=self._measure(inputs, source) if given is None else given,
                reference_from=source.name if given is None else "--reference-loss",
            )  # fmt: skip
            write_record(self.folder.path, target)
        if target.source_digest != source.digest:
            raise UserError(
                f"{self.folder.path} cannot be resumed: the model it grows from was {target.source_digest}, now "
                f"{source.digest}: restore it, or start a new run"
            )
        self.console.line(f"reference loss {target.reference_loss:.4f}, of {target.reference_from}")
        return target

    def _measure(self, inputs: PretrainInputs, source: Teacher) -> float:
        """The source's held-out loss, on a worker of Ray if it launches the training, which may have the only GPU."""
        run, reads = self.config.run, (source.folder, inputs.held_out.folder)
        if run.launcher == "local":
            return measure(*reads, self.config, source.name, choose_device(run.device))
        resources = resources_of(self.config, 1)
        device = torch.device("cuda" if resources.use_gpu else "cpu")
        make = partial(partial, measure, *reads, self.config, source.name)
        share = Share(resources.threads, int(resources.use_gpu))
        fan_out: FanOut[torch.device, float] = FanOut(make, 1, share, reads=reads)
        with fan_out:
            return fan_out.map([device])[0]

    def _train_stages(
        self, inputs: PretrainInputs, source: Teacher, depths: tuple[int, ...], reference: float
    ) -> list[ModelOutcome]:
        """The results of all stages that were needed, finished ones read from the folder."""
        results: list[ModelOutcome] = []
        before: TrainJob | None = None
        for number, layers in enumerate(depths):
            before = job = self._stage(inputs, source, number, layers, before)
            failures = self._train([job])
            result = finish_model(self.folder.path / job.name, job, self.command)
            if result.status == "failed":
                kept = "; the stages before it are kept" if results else ""
                raise UserError(
                    f"the stage of {layers} layers failed ({result.error}){kept}",
                    is_resumable=any(failure.resumable for failure in failures.values()),
                )
            results.append(result.model_copy(update={"layers": layers}))
            loss = final_loss(result)
            if loss <= reference:
                break
            next_step = f"growing to {depths[number + 1]}" if layers < depths[-1] else "there are no more"
            named = "1 layer" if layers == 1 else f"{layers} layers"
            self.console.line(f"{named}: loss {loss:.4f} is above the reference {reference:.4f}; {next_step}")
        return results

    def _stage(
        self, inputs: PretrainInputs, source: Teacher, number: int, layers: int, before: TrainJob | None
    ) -> TrainJob:
        """One stage's job; its first checkpoint is made of the stage before, if that is not done yet."""
        (student,) = inputs.students
        name = f"{student.label}.layers{layers}"
        folder, storage = self.folder.path / name, self.storage_of(name)
        if not (folder / TrainedModel.FILE).exists():
            optimizer: dict[str, Tensors] = {}
            if before is None:
                model = inherit(source, layers)
            else:
                model, optimizer = grow(source, layers, before.storage, before.name)
            origin = origin_of(student, "first-n", inputs, self.config.kind)
            start_model(
                folder, storage, model, student.tokenizer, self.config.data.sequence_length, name=source.name,
                start="first-n" if before is None else "grown", source=student.source, optimizer=optimizer,
                grown_from=before.name if before else None, search_flops=student.search_flops,
                origin=origin.model_copy(update={"lineage": Lineage(teacher=describe_teacher(source)).to_json()}),
                dtype=own_type(self.config.model.students[0]),
            )  # fmt: skip
        # Every stage reads the tokens in an order of its own, as further epochs do.
        return make_job(self.config, inputs, folder, storage, self.config.batch.seed[0] + number)


def inherit(source: Teacher, layers: int) -> Any:
    """A source's first layers with its embeddings, final norm and output head, in fp32."""
    first = first_layers(source.architecture(), layers)
    return extract(source.state(), source.config(), source.family(), first, dtype=torch.float32)


@torch.no_grad()
def grow(source: Teacher, layers: int, storage: str, name: str) -> tuple[Any, dict[str, Tensors]]:
    """A trained stage with the source's next layers on top.

    The stage's last checkpoint gives every parameter it has, embeddings, final norm and head included; the layers above
    it are the source's own.
    """
    checkpoints = CheckpointFolder(storage)
    last = checkpoints.latest()
    if last is None:
        raise UserError(f"{storage} holds no checkpoint of {name} to grow from: start a new run")
    model = inherit(source, layers)
    places = dict(model.named_parameters())
    with checkpoints.open(last) as folder:
        state, _ = read_state(folder)
        for key, parameter in load_student(folder, name).named_parameters():
            places[key].copy_(parameter)
    return model, state.optimizer


def measure(folder: Path, tokens: Path, config: PretrainConfig, name: str, device: torch.device) -> float:
    """A model's held-out loss in nats per token, measured exactly as that of the stages that are compared with it."""
    model = load_student(local_copy(folder), name)
    check_logits(model, name)
    precision, place = choose_precision(config.engine.precision, device.type), Place(0, 1, device)
    module = StudentLoss(model.to(device), None, DTYPES[precision]).eval()
    held_out = TokenShards.open(local_copy(tokens))

    batch = default_micro_batch(min(8, held_out.num_sequences), held_out.sequence_length, place)
    separate, losses = config.data.documents == "separate", partial(next_losses, module, precision, device)
    loss = held_out_loss(losses, held_out, separate=separate, batch=batch, device=device).loss
    if not math.isfinite(loss):
        raise UserError(f"the held-out loss of {name} itself is {loss}: give --reference-loss")
    return loss


def final_loss(result: ModelOutcome) -> float:
    """The held-out loss of a stage's last step; infinite where it is not finite."""
    loss = result.evals[-1].loss
    return math.inf if loss is None else loss


def summary_of(results: Sequence[ModelOutcome], target: GrowthTarget) -> GrowthResult:
    """What growth came to."""
    last, spent = results[-1], [result.flops or SpentFlops() for result in results]
    return GrowthResult(
        **{name: getattr(target, name) for name in GrowthGoal.model_fields},
        sufficient_layers=last.layers if final_loss(last) <= target.reference_loss else None,
        layers=last.layers or 0, final_loss=last.evals[-1].loss, stages=len(results),
        tokens=sum(result.tokens or 0 for result in results), seconds=sum(result.seconds or 0 for result in results),
        flops=SpentFlops(
            own=sum(flops.own for flops in spent), teacher=sum(flops.teacher for flops in spent),
            capture=sum(flops.capture for flops in spent),
        ),
    )  # fmt: skip


def growth_table(results: Sequence[ModelOutcome], reference: float) -> list[str]:
    """One line per stage."""
    lines = [
        f"{'stage':32} {'layers':>6} {'params':>8} {'tokens':>8} {'first loss':>10} {'final loss':>10} "
        f"{'reference':>9} {'above it':>9} {'time':>12}"
    ]
    for result in results:
        first, last = result.evals[0].loss, final_loss(result)
        lines.append(
            f"{result.name:32} {result.layers:>6} {format_count(result.params):>8} "
            f"{format_count(result.tokens or 0):>8} {math.inf if first is None else first:>10.4f} {last:>10.4f} "
            f"{reference:>9.4f} {last - reference:>+9.4f} {format_seconds(result.seconds or 0):>12}"
        )
    return lines


def closing_sentence(growth: GrowthResult) -> str:
    """What growth found."""
    loss = math.inf if growth.final_loss is None else growth.final_loss
    stages = "1 stage" if growth.stages == 1 else f"{growth.stages} stages"
    flops = growth.flops.own + growth.flops.teacher
    spent = f"{stages}, {format_count(growth.tokens)} tokens and {flops:.2e} FLOPs"
    target = f"the reference {growth.reference_loss:.4f} of {growth.reference_from}"
    if growth.sufficient_layers is None:
        return (
            f"even all {growth.source_layers} layers did not reach {target}: their validation loss is {loss:.4f} "
            f"after {spent} in all; train longer (--tokens) or give a higher --reference-loss"
        )
    return (
        f"{growth.layers} layers are enough: of the {growth.source_layers} there are, they reach a validation "
        f"loss of {loss:.4f} against {target}, after {spent} in all"
    )
