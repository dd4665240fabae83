"""The student with its loss, as the one module that an engine wraps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from slm_ray.config.errors import UserError
from slm_ray.distill.losses import Divergence, causal_lm_loss
from slm_ray.distill.signal import TeacherSignal
from slm_ray.models.lm_head import cap_of, capped, final_hidden, next_token_losses

_LARGE_LOGIT = 300.0
_JOINED = "give --documents joined"


class StudentLoss(nn.Module):
    """Computes a student's loss from token ids, without ever holding a token x vocabulary tensor."""

    def __init__(self, student: Any, divergence: Divergence | None, compute_dtype: torch.dtype) -> None:
        """Wrap a student.

        ``divergence``: How it is compared with the teacher; None trains on the text alone.
        """
        super().__init__()
        self.student = student
        self.divergence = divergence
        self.compute_dtype = compute_dtype
        self.cap = cap_of(student)

    def hidden_states(self, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """Final hidden states ``[batch * (sequence - 1), hidden]`` of the positions that have a next token."""
        return final_hidden(self.student, ids, positions)[:, :-1].flatten(0, 1).to(self.compute_dtype)

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor | None,
        weights: torch.Tensor | None = None,
        signal: TeacherSignal | None = None,
        kd_weight: float = 0.0,
    ) -> tuple[torch.Tensor, ...]:
        """The loss of a micro-batch, or without ``weights`` the loss of every next token.

        ``ids``: ``[batch, sequence]`` token ids. ``positions``: ``[batch, sequence]`` positions within documents, or
        None.
        """
        hidden = self.hidden_states(ids, positions)
        head = self.student.get_output_embeddings().weight
        targets = ids[:, 1:].flatten()
        if weights is None:
            return (next_token_losses(hidden, head.to(self.compute_dtype), targets, self.cap),)
        share = kd_weight if signal is not None else 0.0
        parts = causal_lm_loss(
            hidden, head, targets, weights, ce_weight=1 - share, kd_weight=share, signal=signal,
            divergence=self.divergence if signal is not None else None, cap=self.cap,
        )  # fmt: skip
        return (parts.loss, parts.ce) if parts.kd is None else (parts.loss, parts.ce, parts.kd)


@contextlib.contextmanager
def _evaluating(student: Any) -> Iterator[None]:
    """No dropout inside the block."""
    was_training = student.training
    student.eval()
    try:
        yield
    finally:
        student.train(was_training)


def _scaled(output: Any, factor: torch.Tensor) -> Any:
    output.last_hidden_state = output.last_hidden_state * factor
    return output


@torch.no_grad()
def check_documents(student: Any, name: str) -> None:
    """Make sure that a model keeps attention inside documents where positions begin anew."""
    vocabulary = student.config.vocab_size
    ids = torch.arange(16).remainder(vocabulary).view(2, 8)
    other = ids.clone()
    other[0, :3] = (ids[0, :3] + max(1, vocabulary // 2)) % vocabulary  # another document before the second one
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 1]])
    with _evaluating(student):
        try:
            before, after = (
                student.base_model(given, position_ids=positions, use_cache=False).last_hidden_state[0, 3:]
                for given in (ids, other)
            )
        except TypeError as error:
            raise UserError(f"{name} takes no positions, by which documents are kept apart: {_JOINED}") from error
    # Both are computed alike: nothing but the other document makes them differ, however a model blows up rounding.
    tolerance = 1e-3 * before.nan_to_num().abs().max().item()
    if not torch.allclose(before, after, rtol=1e-3, atol=tolerance, equal_nan=True):
        raise UserError(f"{name} looks across the documents of a sequence, whatever its positions: {_JOINED}")


@torch.no_grad()
def check_logits(student: Any, name: str) -> None:
    """Make sure that a model's logits are its final hidden states times its output head."""
    head = student.get_output_embeddings()
    if head is None or not hasattr(student, "base_model"):
        raise UserError(f"{name} has no output head: give a causal language model")
    vocabulary = head.weight.shape[0]
    ids = torch.arange(min(8, vocabulary)).unsqueeze(0)  # no more than the shortest sequences there are
    with _evaluating(student):
        ours = nn.functional.linear(final_hidden(student, ids), head.weight)
        # Brought to hundreds, so that a cap shows, which lets small logits pass.
        factor = _LARGE_LOGIT / ours.abs().max().clamp_min(1e-30)
        hook = student.base_model.register_forward_hook(lambda _module, _inputs, output: _scaled(output, factor))
        try:
            found = student(ids, use_cache=False).logits
        finally:
            hook.remove()
    same = torch.allclose(capped(ours * factor, cap_of(student)), found, rtol=1e-3, atol=1e-2, equal_nan=True)
    if getattr(head, "bias", None) is not None or not same:
        raise UserError(
            f"{name} scales, caps or biases its logits, which the losses here do not do: use a model of the families "
            "in docs/adding_a_family.md"
        )
