"""Perplexity and KL to the teacher, measured in stages over the same tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch

from slm_ray.models.lm_head import kl_divergences
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.search import Measurement
from slm_ray.records.subnet import SubnetSpec, full_subnet
from slm_ray.search.measurement import block_means, mean_and_stderr
from slm_ray.search.race import Rival, full_estimate, is_beaten

# Of 512 tokens. On a processor larger batches are 5% faster and hold twice the activations; a GPU wants work.
_BATCH_SEQUENCES = {"cpu": 2, "cuda": 16}
# A loss this large (perplexity 5e8) says "destroyed" as well as any larger one, and its exponential stays finite.
LARGEST_LOSS = 20.0

Decided = Literal["full", "dominated"]
SequenceLosses = Callable[[SubnetSpec, torch.Tensor, int], torch.Tensor]


def batch_sequences(device: torch.device) -> int:
    """How many sequences go through a model at a time."""
    return _BATCH_SEQUENCES.get(device.type, _BATCH_SEQUENCES["cpu"])


def stage_ends(num_sequences: int, sequence_length: int, stage_tokens: tuple[int, ...]) -> list[int]:
    """After how many sequences each stage ends; the last stage is all of them.

    Args:
        num_sequences: Calibration sequences there are.
        sequence_length: Their length in tokens.
        stage_tokens: Where the early stages should end, in tokens.
    """
    ends = {min(max(1, round(tokens / sequence_length)), num_sequences) for tokens in stage_tokens}
    return sorted(ends | {num_sequences})


class StagedLoss:
    """Measures a mean loss over calibration sequences, stage by stage, and stops early when beaten.

    Subclass-free: what is measured per sequence is a function of (spec, ids, first sequence number).
    """

    def __init__(self, losses: SequenceLosses, ids: torch.Tensor, ends: list[int], confidence: float) -> None:
        """Set up.

        Args:
            losses: Gives ``[batch, positions]`` losses in nats.
            ids: ``[sequences, length]`` calibration tokens.
            ends: Where each stage ends, in sequences.
            confidence: One-sided confidence at which a candidate counts as beaten.
        """
        self.losses, self.ids, self.ends, self.confidence = losses, ids, ends, confidence
        self.batch = batch_sequences(ids.device)

    def blocks_by_stage(self, spec: SubnetSpec) -> Iterator[list[float]]:
        """Yield all block losses so far, after each stage."""
        blocks: list[float] = []
        done = 0
        for end in self.ends:
            while done < end:
                stop = min(done + self.batch, end)
                for row in self.losses(spec, self.ids[done:stop], done).double().cpu().numpy():
                    blocks.extend(block_means(np.nan_to_num(row, nan=LARGEST_LOSS, posinf=LARGEST_LOSS)))
                done = stop
            yield blocks

    def measure(self, spec: SubnetSpec, rival: Rival | None = None) -> tuple[Measurement, float, Decided]:
        """Measure a candidate.

        Returns:
            The mean loss as measured; its estimate over all tokens; and ``dominated`` where the race stopped it, else
            ``full``.
        """
        start = time.perf_counter()
        blocks: list[float] = []
        decided: Decided = "full"
        for stage, blocks in enumerate(self.blocks_by_stage(spec), start=1):
            if stage < len(self.ends) and is_beaten(blocks, rival, self.confidence):
                decided = "dominated"
                break
        mean, stderr = mean_and_stderr(blocks)
        tokens = self.ends[stage - 1] * self.ids.shape[1]
        measured = Measurement(
            value=mean, stderr=stderr, tokens=tokens, seconds=time.perf_counter() - start, blocks=tuple(blocks)
        )
        return measured, full_estimate(blocks, rival), decided


def perplexity_of(loss: float) -> float:
    """The exponential of a mean loss in nats, held finite."""
    return math.exp(min(loss, LARGEST_LOSS))


def next_token_losses(runner: SubnetRunner) -> SequenceLosses:
    """Negative log-likelihoods of the next tokens, for :class:`StagedLoss`."""
    return lambda spec, ids, first: runner.token_losses(spec, ids)


class TeacherKL:
    """KL(teacher || candidate) at every position, over the whole vocabulary, in chunks.

    The teacher's final hidden states are computed once and kept (a few MB); its logits are remade chunk by chunk, since
    one row of logits is as large as 85 rows of hidden states.
    """

    def __init__(self, runner: SubnetRunner, ids: torch.Tensor) -> None:
        """Run the teacher over all calibration sequences.

        Args:
            runner: Runs the teacher and its sub-networks.
            ids: ``[sequences, length]`` calibration tokens.
        """
        self.runner = runner
        self.teacher_spec = full_subnet(runner.teacher)
        batches = [runner.hidden_states(self.teacher_spec, batch) for batch in ids.split(batch_sequences(ids.device))]
        self.teacher_hidden = torch.cat(batches)[:, :-1]

    @torch.no_grad()
    def __call__(self, spec: SubnetSpec, ids: torch.Tensor, first: int) -> torch.Tensor:
        """``[batch, positions]`` divergences in nats of sequences ``first ..`` of the calibration tokens."""
        hidden = self.runner.hidden_states(spec, ids)[:, :-1].flatten(0, 1)
        teacher_hidden = self.teacher_hidden[first : first + len(ids)].flatten(0, 1)
        student = self.runner.project(hidden, spec)
        return kl_divergences(teacher_hidden, student, self.runner.head).view(len(ids), -1)
