"""The teacher in the loop: its final hidden states and its output head, for every batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from slm_ray.data.tokenizers import load_tokenizer, plain_backend, vocab_size_of
from slm_ray.distill.signal import DenseSignal
from slm_ray.models.extraction import build_empty, reset_buffers
from slm_ray.models.families import family_of
from slm_ray.models.lm_head import cap_of, final_hidden
from slm_ray.models.teachers import Teacher


def teacher_model(teacher: Teacher, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
    """The teacher as a Hugging Face model whose weights, on a CPU, are pages of its file that all processes share."""
    config = teacher.config()
    model = build_empty(config, family_of(config, teacher.name))
    model.load_state_dict(teacher.state_as(dtype), strict=False, assign=True)
    model.tie_weights()
    reset_buffers(model)
    return model.eval().requires_grad_(False).to(device)


class OnlineTeacher:
    """Computes the full signal of a batch: over the ids of its tokenizer, and no rows that pad its vocabulary."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.model = teacher_model(Teacher(folder.name, folder, "", ""), dtype, device)
        tokens = vocab_size_of(plain_backend(load_tokenizer(folder, local=True)))
        self.head = self.model.get_output_embeddings().weight[:tokens]

    @torch.no_grad()
    def signal(self, ids: torch.Tensor, positions: torch.Tensor | None) -> DenseSignal:
        """The teacher's view of every position that has a next token.

        ``ids``: ``[batch, sequence]`` token ids. ``positions``: ``[batch, sequence]`` positions within documents; None
        where attention crosses them.
        """
        hidden = final_hidden(self.model, ids, positions)
        return DenseSignal(hidden[:, :-1].flatten(0, 1), self.head, cap_of(self.model))
