"""Winners (or the whole front) with their weights reconstructed, and what was measured before and after.

Fitted on the corpus's train part, like unit scores. Whether the new weights are kept is decided on its calibration part
and, where the teacher wrote text of its own, on some of that which nothing was fitted on. The held-out part is measured
afterwards and decides nothing. Each finished model is on the disk before the next group is begun, so a resumed run does
only what is missing.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slm_ray.config.digest import digest_json
from slm_ray.models.extraction import extract, reset_buffers
from slm_ray.models.lm_head import cap_of, final_hidden, next_token_losses
from slm_ray.models.precision import DTYPES
from slm_ray.models.reconstruction import ReconstructionSettings, SubLayerFit, reconstruct, reconstruction_flops
from slm_ray.models.teachers import quiet_transformers
from slm_ray.records.base import parse_record
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import read_json, write_json
from slm_ray.records.search import Measurement, ModelsSpent, Perplexities, Reconstruction, Unexplained
from slm_ray.records.subnet import SubnetSpec
from slm_ray.search.evaluator import measurement_of
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.race import StagedLoss
from slm_ray.search.vocabulary import Vocabularies, WrittenText, measured_with, renumbered

RECONSTRUCTION_FOLDER = "reconstruction"
_GROUP_BYTES = 4 * 1024**3  # weights of students that share one pass of the teacher
_DIGITS = 4
_FITTING_SHARE = 0.8  # of a member's time; the rest is measuring it before and after

Texts = Mapping[str, torch.Tensor]
Save = Callable[[int, Any, Reconstruction], None]
"""Takes a winner's trial, the winner as a model, and its record."""


@dataclass(frozen=True)
class Member:
    """A member of the front to reconstruct.

    Attributes:
        trial: Its number.
        spec: What it keeps.
        params: How many parameters it has.
        is_winner: It is exported.
        measured: Its perplexity on all of the calibration text as the search found it; None where that is not known.
    """

    trial: int
    spec: SubnetSpec
    params: int
    is_winner: bool
    measured: Measurement | None = None


def measure_model(model: Any, ids: torch.Tensor, written: WrittenText | None = None) -> Measurement:
    """A model's perplexity per teacher token, measured as candidates are.

    Args:
        model: A causal LM in the type to compute in.
        ids: ``[sequences, length]``, the teacher's.
        written: The same text in the model's own ids, where its vocabulary is not the teacher's.
    """
    head = model.get_output_embeddings().weight

    @torch.no_grad()
    def losses(part: torch.Tensor, first: int) -> torch.Tensor:
        own = part if written is None else written.ids[first : first + len(part)]
        hidden = final_hidden(model, own)[:, :-1].flatten(0, 1)
        found = next_token_losses(hidden, head, own[:, 1:].flatten(), cap_of(model)).view(len(own), -1)
        return found if written is None else written.per_token(found, first)

    return measurement_of(StagedLoss(ids).measure(losses), 0.0)


def measure_texts(
    model: Any, texts: Texts, precision: str, spec: SubnetSpec, vocabularies: Vocabularies
) -> dict[str, Measurement]:
    """A student's perplexity per teacher token on several texts, in the type that candidates are measured in.

    Args:
        model: A causal LM in fp32, which stays as it is.
        texts: ``[sequences, length]`` of the teacher's ids each, by name.
        precision: ``fp32`` or ``bf16``.
        spec: What it keeps of the teacher.
        vocabularies: The search's.
    """
    device = next(model.parameters()).device
    measured = model
    if DTYPES[precision] != torch.float32:
        measured = copy.deepcopy(model).to(DTYPES[precision])
        reset_buffers(measured)  # its frequencies are a buffer, which .to() rounds too
    found = {}
    for name, ids in texts.items():
        text = measured_with(vocabularies.written(ids.cpu().numpy()), spec)
        own = None if text is None else dataclasses.replace(text, ids=renumbered(text.ids, spec)).to(device)
        found[name] = measure_model(measured, ids, own)
    return found


def _ids(ids: NDArray[np.int32], device: str) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(device)


def _perplexities(measured: Mapping[str, Measurement]) -> Perplexities:
    found = Perplexities()
    for name, one in measured.items():
        found = found.with_measurement(name, one)
    return found


class Reconstructor:
    """Reconstructs members of a front, group by group."""

    def __init__(
        self,
        inputs: SearchInputs,
        folder: Path,
        dtype: torch.dtype,
        settings: ReconstructionSettings | None = None,
        on_member: Callable[[int, Reconstruction], None] = lambda trial, record: None,
        on_part: Callable[[float], None] = lambda members: None,
    ) -> None:
        """Prepare.

        Args:
            inputs: What the search started from.
            folder: Where the records of finished members are.
            dtype: The type that winners are saved in.
            settings: How to reconstruct.
            on_member: Told of every member's trial and record, those found on the disk too.
            on_part: Told how many members are done, those that are being fitted in part.
        """
        assert inputs.reconstruction is not None
        self.inputs, self.folder, self.tokens, self.dtype = inputs, folder, inputs.reconstruction, dtype
        self.device, self.precision = inputs.here
        self.settings = settings or ReconstructionSettings(bf16=self.precision == "bf16")
        self.on_member, self.on_part = on_member, on_part
        self._done = 0
        self._texts = {"calibration": _ids(inputs.calibration.ids, self.device)}
        if inputs.aside is not None:
            self._texts["teacher_text"] = _ids(inputs.aside, self.device)

    def run(
        self, members: Sequence[Member], save: Save, is_saved: Callable[[int], bool]
    ) -> dict[int, Reconstruction]:
        """Reconstruct what is not done yet.

        Args:
            members: The members.
            save: Writes a winner's folder.
            is_saved: Whether a winner's folder is there and whole.

        Returns:
            Every member's record, by trial.

        Raises:
            UserError: The disk is full, or a record is damaged.
        """
        found: dict[int, Reconstruction] = {}
        for member in members:
            record = self._known(member)
            if record is not None and (is_saved(member.trial) or not member.is_winner):
                found[member.trial] = record
                self.on_member(member.trial, record)
        left = [member for member in members if member.trial not in found]
        self._done = len(found)
        self.on_part(self._done)
        for group in _groups(left):
            self._do_group(group, save, found)
            self._done = len(found)
        return found

    def _key(self) -> str:
        """Everything that a record depends on beside its sub-network."""
        return digest_json([
            self.inputs.record().to_json(), self.tokens.digest, dataclasses.asdict(self.settings), str(self.dtype),
        ])  # fmt: skip

    def _path(self, member: Member) -> Path:
        return self.folder / f"{member.trial}.json"

    def _known(self, member: Member) -> Reconstruction | None:
        path = self._path(member)
        record = parse_record(Reconstruction, read_json(path), str(path)) if path.exists() else None
        return record if record is not None and record.key == self._key() else None

    def _do_group(self, group: Sequence[Member], save: Save, found: dict[int, Reconstruction]) -> None:
        inputs, teacher = self.inputs, self.inputs.teacher
        config, family = teacher.config(), teacher.family()
        state = {name: tensor.to(self.device) for name, tensor in teacher.state_as(torch.float32).items()}
        with quiet_transformers():
            students = [extract(state, config, family, member.spec) for member in group]
        before = [self._before(student, member) for student, member in zip(students, group, strict=True)]
        pairs = [(student, member.spec) for student, member in zip(students, group, strict=True)]
        layers = inputs.architecture.num_hidden_layers

        def on_layer(done: int) -> None:
            self.on_part(self._done + _FITTING_SHARE * len(group) * done / layers)

        ids = _ids(inputs.vocabularies.rewritten(self.tokens.ids, group[0].spec), self.device)
        fits = reconstruct(state, config, family, pairs, ids, self.settings, on_layer)
        for number, (member, student, old, fit) in enumerate(zip(group, students, before, fits, strict=True), 1):
            for parameter in student.parameters():  # what is measured is what is saved
                parameter.data = parameter.data.to(self.dtype).float()
            new = self._measured(student, member, self._texts)
            is_kept = all(new[name].value < old[name].value for name in self._texts)
            after = dict(new) | (self._on_held_out(student, member) if is_kept else {})
            if not is_kept:
                student = extract(state, config, family, member.spec)
            record = Reconstruction(
                key=self._key(), kept=is_kept, tokens=self.tokens.num_tokens, part=self.tokens.part,
                written_tokens=self.tokens.written_tokens, before=_perplexities(old), after=_perplexities(after),
                unexplained=_unexplained(fit), settings=dataclasses.asdict(self.settings),
            )  # fmt: skip
            if member.is_winner:
                save(member.trial, student, record)
            self.folder.mkdir(exist_ok=True)
            write_json(self._path(member), record.to_json())
            found[member.trial] = record
            self.on_part(self._done + _FITTING_SHARE * len(group) + (1 - _FITTING_SHARE) * number)
            self.on_member(member.trial, record)

    def _before(self, model: Any, member: Member) -> dict[str, Measurement]:
        known = {} if member.measured is None else {"calibration": member.measured}
        left = {name: ids for name, ids in self._texts.items() if name not in known}
        return known | (self._measured(model, member, left) if left else {})

    def _measured(self, model: Any, member: Member, texts: Texts) -> dict[str, Measurement]:
        return measure_texts(model, texts, self.precision, member.spec, self.inputs.vocabularies)

    def _on_held_out(self, model: Any, member: Member) -> dict[str, Measurement]:
        texts = {"held_out": self.inputs.held_out} | ({} if self.inputs.other is None else {"other": self.inputs.other})
        return self._measured(model, member, {name: _ids(text.ids, self.device) for name, text in texts.items()})

    def spent(self, members: Sequence[Member]) -> ModelsSpent:
        """What reconstructing members costs, whichever process of a run did it.

        The fits, the text that decides before (but what the search has measured) and after, the held-out text after.
        """
        inputs, length = self.inputs, self.tokens.sequence_length
        decided = inputs.calibration.num_tokens + (0 if inputs.aside is None else inputs.aside.size)
        measured = 2 * decided + inputs.held_out.num_tokens + (0 if inputs.other is None else inputs.other.num_tokens)
        tokens, flops = 0, 0.0
        for group in _groups(members):
            sizes = [member.spec.architecture_in(inputs.architecture) for member in group]
            each = [measured - (one.measured.tokens if one.measured else 0) for one in group]
            tokens += (1 + len(group)) * self.tokens.num_tokens + sum(each)
            flops += reconstruction_flops(inputs.architecture, sizes, self.tokens.num_tokens, length)
            flops += sum(count * flops_per_token(size, length) for count, size in zip(each, sizes, strict=True))
        return ModelsSpent(models=len(members), tokens=tokens, flops=flops)


def _groups(members: Sequence[Member]) -> list[list[Member]]:
    """Members that share a pass of the teacher: of one vocabulary, and as many as their weights have memory for."""
    groups: list[list[Member]] = []
    room = 0
    for member in sorted(members, key=lambda one: len(one.spec.vocabulary or ())):
        needed = 4 * member.params
        if not groups or needed > room or groups[-1][0].spec.vocabulary != member.spec.vocabulary:
            groups.append([])
            room = _GROUP_BYTES
        groups[-1].append(member)
        room -= needed
    return groups


def describe_reconstruction(record: Reconstruction) -> str:
    """A record in a few words for a terminal."""
    before, after = record.before.calibration_perplexity, record.after.calibration_perplexity
    return f"perplexity {before:.4g} to {after:.4g}" + ("" if record.kept else ", so its weights stay as they were")


def _unexplained(fits: Sequence[SubLayerFit]) -> Unexplained:
    return Unexplained(
        before=round(sum(fit.before for fit in fits) / len(fits), _DIGITS),
        after=round(sum(fit.after for fit in fits) / len(fits), _DIGITS),
    )
