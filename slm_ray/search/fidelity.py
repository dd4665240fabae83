"""How far each shortcut of a search can be trusted: its rank correlation with what it stands for.

A search hardly ever does the whole thing: it reads the first tokens, stops a candidate early, adds up scores, computes
in bf16, and takes the untrained loss for the trained one. Every such figure is set against the one that it replaces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm_ray.evaluate.intervals import wilson_interval
from slm_ray.search.correlation import rank_correlations
from slm_ray.search.staged import stage_ends

FEWEST = 3  # candidates that a rank correlation is given of; of two it is 1 or -1 whatever they are
MOST = 500  # that it is worked out over, and of which points are kept: of more, as many spread evenly over the trials
MOST_POINTS = 100
_FP32_SHARE = 0.25  # of the calibration text: rounding moves the loss of every token a little, which shows on few

# What a shortcut is set against.
FULL, TRAINED, HELD_OUT, FP32, RECORDED = "full", "trained", "held-out", "fp32", "recorded"

Losses = Mapping[int, float]


@dataclass(frozen=True)
class Shortcut:
    """A figure that stands for a dearer one.

    Attributes:
        name: What it is called in tables.
        kind: ``stage``, ``race``, ``scores``, ``prices``, ``size``, ``objective``, ``precision``, ``full`` or
            ``surrogate``.
        values: By trial; less promises a lower loss.
        tokens: Tokens of text it reads of one candidate.
        flops: FLOPs it computes for one candidate.
        shared_flops: FLOPs once for all candidates.
    """

    name: str
    kind: str
    values: Losses
    tokens: float = 0.0
    flops: float = 0.0
    shared_flops: float = 0.0


def full_loss(blocks: Sequence[float]) -> float:
    """The mean loss of a candidate over all tokens, in nats."""
    return float(np.mean(blocks))


def stage_losses(
    blocks: Mapping[int, Sequence[float]], num_sequences: int, sequence_length: int, stage_tokens: tuple[int, ...]
) -> dict[int, dict[int, float]]:
    """The mean loss at the end of each early stage, of candidates that were measured on all tokens.

    Args:
        blocks: All block losses of each trial, in nats.
        num_sequences: Calibration sequences there are.
        sequence_length: Their length in tokens.
        stage_tokens: Where the early stages should end.

    Returns:
        By the tokens that a stage reads, the losses by trial; the last stage, which is all tokens, is not among them.
    """
    found = {}
    for end in stage_ends(num_sequences, sequence_length, stage_tokens)[:-1]:
        losses = {}
        for trial, values in blocks.items():
            share = len(values) * end // num_sequences  # every sequence has as many blocks
            losses[trial] = float(np.mean(values[:share]))
        found[end * sequence_length] = losses
    return found


def num_in_fp32(num_sequences: int) -> int:
    """Of so many calibration sequences, on how many candidates are measured in fp32 too: the first ones."""
    return max(1, int(num_sequences * _FP32_SHARE))


def spread(trials: Sequence[int], count: int, seed: Sequence[int]) -> list[int]:
    """Some of a list, spread over it: it is cut into as many parts of equal size, and one is drawn from each.

    Args:
        trials: In the order they are to be spread over.
        count: How many; all where there are no more.
        seed: Of the draws.
    """
    if len(trials) <= count:
        return list(trials)
    rng = np.random.default_rng(list(seed))
    parts = np.array_split(np.arange(len(trials)), count) if count else []
    return [trials[int(rng.choice(part))] for part in parts]


def evenly(trials: list[int], most: int) -> list[int]:
    """All of a list, or so many spread evenly over it."""
    if len(trials) <= most:
        return trials
    return [trials[int(at)] for at in np.linspace(0, len(trials) - 1, most).round()]


def compare(shortcut: Shortcut, against: str, losses: Losses, seed: int) -> dict[str, Any]:
    """A shortcut against what it stands for, over the candidates of which both are known.

    Args:
        shortcut: The shortcut.
        against: What it is set against.
        losses: That, by trial, less being better.
        seed: Of the resampling.

    Returns:
        What ``fidelity.json`` has of it; what is undefined is None with a note.
    """
    both = evenly(sorted(trial for trial in shortcut.values if trial in losses), MOST)
    x, y = [shortcut.values[trial] for trial in both], [losses[trial] for trial in both]
    if len(both) < FEWEST:
        nothing = {"value": None, "low": None, "high": None, "note": f"too few candidates: {len(both)}"}
        found = {"kendall": nothing, "spearman": dict(nothing)}
    else:
        found = {name: one.to_json() for name, one in rank_correlations(x, y, seed).items()}
    points = [[trial, _short(shortcut.values[trial]), _short(losses[trial])] for trial in evenly(both, MOST_POINTS)]
    return {
        "shortcut": shortcut.name, "kind": shortcut.kind, "against": against, "candidates": len(both), **found,
        "cost": {
            "tokens_per_candidate": shortcut.tokens, "flops_per_candidate": shortcut.flops,
            "shared_flops": shortcut.shared_flops,
        },
        "points": points,
    }  # fmt: skip


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def off_by(estimates: Losses, losses: Losses) -> dict[str, Any]:
    """By how much estimates miss, in nats per token: half of them by no more than the median, and at most.

    The mean (too high: more than 0) is moved by single ruined candidates, whose losses are far out.
    """
    missed = [estimates[trial] - losses[trial] for trial in sorted(estimates) if trial in losses]
    if not missed:
        return {"audited": 0, "mean_difference": None, "median_miss": None, "largest_difference": None}
    return {
        "audited": len(missed), "mean_difference": round(math.fsum(missed) / len(missed), 6),
        "median_miss": round(float(np.median(np.abs(missed))), 6),
        "largest_difference": round(max(map(abs, missed)), 6),
    }  # fmt: skip


def wrongly_stopped(values: Mapping[int, Sequence[float]], front: NDArray[np.float64]) -> list[int]:
    """The stopped candidates that would be on the front: no member is at least as good in everything.

    Args:
        values: What each stopped candidate's objectives are in truth, all minimised.
        front: ``[members, objectives]`` of the front.
    """
    return [trial for trial, own in sorted(values.items()) if not np.any(np.all(front <= np.asarray(own), axis=1))]


def race_record(stopped: int, estimates: Losses, losses: Losses, wrong: Sequence[int]) -> dict[str, Any]:
    """What the race got wrong among the stopped candidates that were measured to the end.

    Args:
        stopped: How many were stopped in all.
        estimates: What those measured to the end had been estimated at, in nats.
        losses: What they are at in truth.
        wrong: Those of them that would be on the front.
    """
    record = {"stopped": stopped, **off_by(estimates, losses), "wrong": len(wrong), "wrong_trials": list(wrong)}
    audited = record["audited"]
    interval = [round(end, 4) for end in wilson_interval(len(wrong), audited)] if audited else None
    return record | {"wrong_share_interval": interval}
