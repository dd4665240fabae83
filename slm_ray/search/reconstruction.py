"""Winners (or the whole front) with their weights reconstructed, and what was measured before and after.

Fitted on the corpus's train part, like unit scores; whether the new weights are kept is decided on its calibration
part, and where the teacher wrote text of its own on some of that too, which nothing was fitted on; its held-out part is
measured afterwards and decides nothing. Each finished model is on the disk before the next group is begun, so a resumed
run does only what is missing.
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

from slm_ray.models.extraction import extract, reset_rotary
from slm_ray.models.lm_head import next_token_losses
from slm_ray.models.loading import quiet_transformers
from slm_ray.models.reconstruction import ReconstructionSettings, SubLayerFit, reconstruct, reconstruction_flops
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import read_json, write_json
from slm_ray.records.search import Measurement
from slm_ray.records.subnet import SubnetSpec
from slm_ray.search.evaluator import DTYPES
from slm_ray.search.finish import perplexity_fields
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.staged import StagedLoss, perplexity_of, stage_ends

RECONSTRUCTION_FOLDER = "reconstruction"
_GROUP_BYTES = 4 * 1024**3  # weights of students that share one pass of the teacher
_DIGITS = 4
_FITTING_SHARE = 0.8  # of a member's time; the rest is measuring it before and after


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


Save = Callable[[int, Any, dict[str, Any]], None]


def measure_model(model: Any, ids: torch.Tensor) -> Measurement:
    """A model's perplexity, measured as candidates are.

    Args:
        model: A causal LM in the type to compute in.
        ids: ``[sequences, length]``.
    """
    head = model.get_output_embeddings().weight

    @torch.no_grad()
    def losses(_spec: SubnetSpec, part: torch.Tensor, _first: int) -> torch.Tensor:
        hidden = model.base_model(part, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        return next_token_losses(hidden, head, part[:, 1:].flatten()).view(len(part), -1)

    ends = stage_ends(len(ids), ids.shape[1], ())
    measured, _, _ = StagedLoss(losses, ids, ends, 0.6).measure(SubnetSpec((), ()))
    value = perplexity_of(measured.value)
    stderr = None if measured.stderr is None else value * measured.stderr
    return Measurement(value=value, stderr=stderr, tokens=measured.tokens, seconds=measured.seconds)


def _ids(ids: NDArray[np.int32]) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64))


def measure_texts(model: Any, texts: Mapping[str, torch.Tensor], precision: str) -> dict[str, Measurement]:
    """A model's perplexity on several texts, in the type that candidates are measured in.

    Args:
        model: A causal LM in fp32, which stays as it is.
        texts: ``[sequences, length]`` each, by name.
        precision: ``fp32`` or ``bf16``.
    """
    measured = model
    if DTYPES[precision] != torch.float32:
        measured = copy.deepcopy(model).to(DTYPES[precision])
        reset_rotary(measured)  # its frequencies are a buffer, which .to() rounds too
    return {name: measure_model(measured, ids) for name, ids in texts.items()}


def _all_figures(measured: Mapping[str, Measurement]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, one in measured.items():
        found |= perplexity_fields(name, one)
    return found


class Reconstruction:
    """Reconstructs members of a front, group by group."""

    def __init__(
        self,
        inputs: SearchInputs,
        folder: Path,
        settings: ReconstructionSettings | None = None,
        on_member: Callable[[int, dict[str, Any]], None] = lambda trial, record: None,
        on_part: Callable[[float], None] = lambda members: None,
    ) -> None:
        """Prepare.

        Args:
            inputs: What the search started from.
            folder: Where the records of finished members are.
            settings: How to reconstruct.
            on_member: Told of every member's trial and record, those found on the disk too.
            on_part: Told how many members are done, those that are being fitted in part.
        """
        assert inputs.reconstruction is not None
        self.inputs, self.folder, self.tokens = inputs, folder, inputs.reconstruction
        self.settings = settings or ReconstructionSettings(bf16=inputs.precision == "bf16")
        self.on_member, self.on_part = on_member, on_part
        self._done = 0

    def run(self, members: Sequence[Member], save: Save, has_folder: Callable[[int], bool]) -> dict[int, Any]:
        """Reconstruct all members that are not on record.

        Args:
            members: Members of the front.
            save: Given the trial, model and record of a winner, writes its folder.
            has_folder: Whether a winner's folder is there already.

        Returns:
            What was measured, by trial, as results hold it.
        """
        found = {member.trial: read_json(path) for member in members if (path := self._path(member)).is_file()}
        found = {trial: record for trial, record in found.items() if record.get("key") == self._key()}
        left = [one for one in members if one.trial not in found or (one.is_winner and not has_folder(one.trial))]
        for done, trial in enumerate(found.keys() - {one.trial for one in left}, 1):
            self.on_part(done)
            self.on_member(trial, found[trial])
        self._done = len(members) - len(left)
        for group in self._groups(left):  # with torch's own number of threads: --workers must not change a result
            self._do_group(group, save, found)
            self._done += len(group)
        return {trial: {name: value for name, value in one.items() if name != "key"} for trial, one in found.items()}

    def _key(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.settings)
        return {"tokens": self.tokens.digest, "precision": self.inputs.precision, "settings": settings}

    def _path(self, member: Member) -> Path:
        return self.folder / f"{member.trial}.json"

    @staticmethod
    def _groups(members: Sequence[Member]) -> list[list[Member]]:
        groups: list[list[Member]] = []
        room = 0
        for member in members:
            needed = 4 * member.params
            if not groups or needed > room:
                groups.append([])
                room = _GROUP_BYTES
            groups[-1].append(member)
            room -= needed
        return groups

    def _do_group(self, group: Sequence[Member], save: Save, found: dict[int, Any]) -> None:
        inputs = self.inputs
        teacher = inputs.teacher
        config, family, state = teacher.config(), teacher.family(), teacher.state_as(torch.float32)
        kept_type = next(iter(teacher.state().values())).dtype
        with quiet_transformers():
            students = [extract(state, config, family, member.spec) for member in group]
        texts = {"calibration": _ids(inputs.calibration.ids)}
        if inputs.aside is not None:
            texts["teacher_text"] = _ids(inputs.aside)
        before = [self._before(student, member, texts) for student, member in zip(students, group, strict=True)]
        pairs = [(student, member.spec) for student, member in zip(students, group, strict=True)]
        layers = inputs.architecture.num_hidden_layers

        def on_layer(done: int) -> None:
            self.on_part(self._done + _FITTING_SHARE * len(group) * done / layers)

        fits = reconstruct(state, config, family, pairs, _ids(self.tokens.ids), self.settings, on_layer)
        for number, (member, student, old, fit) in enumerate(zip(group, students, before, fits, strict=True), 1):
            for parameter in student.parameters():  # what is measured is what is saved
                parameter.data = parameter.data.to(kept_type).float()
            new = self._measured(student, texts)
            is_kept = all(new[name].value < old[name].value for name in texts)
            if not is_kept:
                student = extract(state, config, family, member.spec)
            record = {
                "key": self._key(), "kept": is_kept, "tokens": self.tokens.num_tokens, "part": self.tokens.part,
                "written_tokens": self.tokens.written_tokens,
                "before": _all_figures(old),
                "after": _all_figures(new)
                | (self._held_out(student) if is_kept else {}),
                "unexplained": _unexplained(fit), "settings": dataclasses.asdict(self.settings),
            }  # fmt: skip
            if member.is_winner:
                student.config.dtype = kept_type
                save(member.trial, student.to(kept_type), record)
            self.folder.mkdir(exist_ok=True)
            write_json(self._path(member), record)
            found[member.trial] = record
            self.on_part(self._done + _FITTING_SHARE * len(group) + (1 - _FITTING_SHARE) * number)
            self.on_member(member.trial, record)

    def _before(self, model: Any, member: Member, texts: Mapping[str, torch.Tensor]) -> dict[str, Measurement]:
        known = {} if member.measured is None else {"calibration": member.measured}
        left = {name: ids for name, ids in texts.items() if name not in known}
        return known | (self._measured(model, left) if left else {})

    def _measured(self, model: Any, texts: Mapping[str, torch.Tensor]) -> dict[str, Measurement]:
        return measure_texts(model, texts, self.inputs.precision)

    def _held_out(self, model: Any) -> dict[str, float | None]:
        texts = {"held_out": self.inputs.held_out} | ({} if self.inputs.other is None else {"other": self.inputs.other})
        return _all_figures(self._measured(model, {name: _ids(text.ids) for name, text in texts.items()}))

    def spent(self, members: Sequence[Member]) -> dict[str, Any]:
        """What reconstructing members costs, whichever process of a run did it.

        The fits, the text that decides before (but what the search has measured) and after, the held-out text after.
        """
        inputs, length = self.inputs, self.tokens.sequence_length
        decided = inputs.calibration.num_tokens + (0 if inputs.aside is None else inputs.aside.size)
        measured = 2 * decided + inputs.held_out.num_tokens + (0 if inputs.other is None else inputs.other.num_tokens)
        tokens, flops = 0, 0.0
        for group in self._groups(members):
            sizes = [member.spec.architecture_in(inputs.architecture) for member in group]
            each = [measured - (one.measured.tokens if one.measured else 0) for one in group]
            tokens += (1 + len(group)) * self.tokens.num_tokens + sum(each)
            flops += reconstruction_flops(inputs.architecture, sizes, self.tokens.num_tokens, length)
            flops += sum(count * flops_per_token(size, length) for count, size in zip(each, sizes, strict=True))
        return {"models": len(members), "tokens": tokens, "flops": flops}


def describe_reconstruction(record: dict[str, Any]) -> str:
    """What a record says, in a few words for a terminal."""
    before, after = (record[when]["calibration_perplexity"] for when in ("before", "after"))
    return f"perplexity {before:.4g} to {after:.4g}" + ("" if record["kept"] else ", so its weights stay as they were")


def _unexplained(fits: Sequence[SubLayerFit]) -> dict[str, float]:
    """Mean share of the sub-layers' targets that is left unexplained, before and after each one's own fit."""
    return {
        "before": round(sum(fit.before for fit in fits) / len(fits), _DIGITS),
        "after": round(sum(fit.after for fit in fits) / len(fits), _DIGITS),
    }
