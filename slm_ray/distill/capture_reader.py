"""Running a teacher over sequences of token shards, and the arrays that a logit store keeps of them."""

from __future__ import annotations

import numpy as np
import torch

from slm_ray.data.shards import TokenShards
from slm_ray.distill import store_format
from slm_ray.distill.capture_settings import PRECISIONS, CaptureSettings
from slm_ray.distill.online import teacher_model
from slm_ray.distill.selection import sample, top_k
from slm_ray.distill.store_format import SAMPLED, TOP_K, Array
from slm_ray.models.teachers import Teacher

_FORWARD_TOKENS = {"cpu": 2048, "cuda": 1 << 15}


class SignalReader:
    """Runs a teacher over sequences and gives the arrays of a part.

    Attributes:
        shards: The sequences.
        settings: What is kept.
        model: The teacher.
        head: Its output head, ``[vocabulary, d]``.
    """

    def __init__(self, teacher: Teacher, shards: TokenShards, settings: CaptureSettings, device: str = "cpu") -> None:
        """Load the teacher; on a CPU its weights stay mapped from the file that all workers of a node share."""
        self.shards, self.settings, self._device = shards, settings, device
        self.model = teacher_model(teacher, PRECISIONS[settings.precision], device)
        self.head = self.model.get_output_embeddings().weight

    @torch.inference_mode()
    def read(self, first: int, count: int) -> dict[str, Array]:
        """The arrays of sequences ``first`` to ``first + count - 1``; see :mod:`slm_ray.distill.store_format`."""
        per_pass = max(1, _FORWARD_TOKENS[self._device] // self.shards.sequence_length)
        take = self._top if self.settings.kind == TOP_K else self._drawn
        found = []
        for start in range(first, first + count, per_pass):
            indices = np.arange(start, min(start + per_pass, first + count), dtype=np.int64)
            found.append(take(self._hidden(indices), indices))
        arrays = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        if self.settings.kind == SAMPLED:
            arrays["starts"] = np.append(0, arrays["lengths"].sum(1, dtype=np.int64).cumsum())
        return arrays

    def _hidden(self, indices: Array) -> torch.Tensor:
        """``[sequences * (length - 1), d]`` final hidden states at the tokens that predict one."""
        ids = torch.from_numpy(self.shards.rows(indices)).long().to(self._device)
        positions = None
        if self.settings.documents == "separate":
            # transformers keeps attention between tokens whose positions follow each other.
            positions = torch.from_numpy(self.shards.positions(indices)).long().to(self._device)
        states = self.model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        return states[:, :-1].flatten(0, 1)

    def _top(self, hidden: torch.Tensor, indices: Array) -> dict[str, Array]:
        found = top_k(hidden, self.head, self.settings.k, self.settings.temperature)
        shape = (len(indices), self.shards.sequence_length - 1)
        return {
            "ids": found.ids.cpu().numpy().astype(store_format.id_type(len(self.head))).reshape(*shape, -1),
            "log_probs": found.log_probs.half().cpu().numpy().reshape(*shape, -1),
            "tail": found.tail_log_mass.half().cpu().numpy().reshape(shape),
        }

    def _drawn(self, hidden: torch.Tensor, indices: Array) -> dict[str, Array]:
        shape = (self.shards.sequence_length - 1, self.settings.draws)
        points = np.concatenate([draw_points(self.settings.seed, int(index), *shape) for index in indices])
        at = torch.from_numpy(points).to(self._device)
        found = sample(hidden, self.head, at, self.settings.temperature)
        count_type = store_format.unsigned(self.settings.draws)
        return {
            "lengths": found.lengths.cpu().numpy().astype(count_type).reshape(len(indices), -1),
            "ids": found.ids.cpu().numpy().astype(store_format.id_type(len(self.head))),
            "counts": found.counts.cpu().numpy().astype(count_type),
        }


def draw_points(seed: int, sequence: int, tokens: int, draws: int) -> Array:
    """float64 ``[tokens, draws]`` in ``[0, 1)``, decided by the seed and the sequence's number alone."""
    key = np.array([seed, sequence], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((tokens, draws))
