"""What a finished search's shortcuts cost: each against what it stands for, with rank correlations.

python benchmarks/fidelity.py RUN [--count 6] [--workers 2]

A search reads the first tokens, stops candidates early, adds up scores and computes in bf16. Here some of the stopped
candidates are measured on all calibration tokens, and some of the others in fp32, and every shortcut is set against the
figure it replaces. Nothing is written.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from common import load_result, load_stack, machine_line, run_argument

from slm_ray.evaluate.intervals import wilson_interval
from slm_ray.models.precision import DTYPES
from slm_ray.records.search import ModelCost, SearchResult, Trial
from slm_ray.runtime.session import ray_session
from slm_ray.search.candidates import one_of_each_stratum
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import EvaluatorSettings, measure_in_full
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.race import stage_ends
from slm_ray.search.stack import GenomeStack
from slm_ray.search.static import importance_lost
from slm_ray.search.winners import spec_of
from slm_ray.studies.rank_correlation import rank_correlations

FEWEST = 3  # candidates that a rank correlation is given of; of two it is 1 or -1 whatever they are
FP32_SHARE = 0.25  # of the calibration text: rounding moves the loss of every token a little, which shows on few
Losses = Mapping[int, float]
Blocks = Mapping[int, Sequence[float]]


def stage_losses(blocks: Blocks, num_sequences: int, length: int, stages: Sequence[int]) -> dict[int, dict[int, float]]:
    """Losses by trial at the end of each early stage, by its tokens, from block losses of full measurements."""
    found = {}
    for end in stage_ends(num_sequences, length, stages)[:-1]:
        share = {trial: values[: len(values) * end // num_sequences] for trial, values in blocks.items()}
        found[end * length] = {trial: float(np.mean(values)) for trial, values in share.items()}
    return found


def wrongly_stopped(values: Mapping[int, Sequence[float]], front: np.ndarray) -> list[int]:
    """The stopped candidates that no member of the front ``[members, objectives]`` is as good as in everything."""
    return [trial for trial, own in sorted(values.items()) if not np.any(np.all(front <= np.asarray(own), axis=1))]


def row(name: str, against: str, values: Losses, truth: Losses, seed: int) -> str:
    """A shortcut against what it stands for, as a line of the table."""
    both = sorted(set(values) & set(truth))
    if len(both) < FEWEST:
        return f"| {name} | {against} | {len(both)} | too few | |"
    found = rank_correlations([values[trial] for trial in both], [truth[trial] for trial in both], seed)
    cells = [
        f"{one.value:+.2f} ({one.low:+.2f} to {one.high:+.2f})" if one.value is not None and one.low is not None
        else f"{one.note}" for one in (found.kendall, found.spearman)
    ]  # fmt: skip
    return f"| {name} | {against} | {len(both)} | {' | '.join(cells)} |"


def absolute_errors(estimates: Losses, truth: Losses) -> str:
    """The median and the largest absolute error of estimates, in nats per token."""
    errors = [abs(estimates[trial] - truth[trial]) for trial in estimates if trial in truth]
    return f"median {np.median(errors):.4f}, largest {max(errors):.4f} nats/token" if errors else "nothing measured"


class Fidelity:
    """The measurements of one finished search's shortcuts."""

    def __init__(
        self, config: SearchConfig, inputs: SearchInputs, stack: GenomeStack, trials: Sequence[Trial], workers: int
    ) -> None:
        """``workers``: how many candidates at once; 0: in this process."""
        self.config, self.inputs, self.stack, self.workers = config, inputs, stack, workers
        self.trials = {trial.trial: trial for trial in trials if trial.status == "done"}
        self.proxy = config.plan.objective_names[0]
        self.specs = {number: spec_of(stack, trial) for number, trial in self.trials.items()}

    def estimate(self, trial: Trial) -> float:
        """A trial's loss as the search knows it, nats per token."""
        value = float((trial.objectives or {})[self.proxy])
        return math.log(value) if self.proxy == "perplexity" else value

    def objectives(self, loss: float, cost: ModelCost) -> list[float]:
        """What the search minimises: the loss and, where it is an objective, the budget's quantity in steps."""
        quantity = self.inputs.budget.quantity
        steps = [self.stack.step_of(cost[quantity])] if quantity in self.config.plan.objective_names else []
        return [loss, *steps]

    def blocks(self, trials: Sequence[Trial], precision: str, sequences: int) -> dict[int, Sequence[float]]:
        """Block losses of candidates on the first calibration sequences."""
        self.inputs.teacher.state_as(DTYPES[precision])
        machine, found = self.config.machine, dict[int, Sequence[float]]()
        settings = EvaluatorSettings(
            teacher=self.inputs.teacher, precision=precision, ids=self.inputs.calibration.ids[:sequences],
            proxies=(self.proxy,), threads=machine.threads, device=self.inputs.device,
        )  # fmt: skip
        wanted = {trial.trial: self.specs[trial.trial] for trial in trials}
        if wanted:
            measure_in_full(
                settings, wanted, self.workers, lambda trial, one: found.update({trial: one[self.proxy].blocks})
            )
        return found


def tables(fidelity: Fidelity, result: SearchResult, count: int) -> list[str]:
    """Measure, and write everything as Markdown."""
    config, inputs, proxy = fidelity.config, fidelity.inputs, fidelity.proxy
    seed, ids = config.plan.seed, inputs.calibration.ids
    rng = np.random.default_rng(seed)
    ranked = sorted(fidelity.trials.values(), key=lambda trial: (fidelity.estimate(trial), trial.trial))
    stopped = [trial for trial in ranked if trial.decided == "dominated"]
    whole = {trial.trial: trial for trial in ranked if trial.decided == "full"}
    again = one_of_each_stratum(stopped, min(count, len(stopped)), rng)
    blocks: dict[int, Sequence[float]] = {number: trial.measurements[proxy].blocks for number, trial in whole.items()}
    blocks |= fidelity.blocks(again, inputs.precision, len(ids))
    losses = {number: float(np.mean(values)) for number, values in blocks.items()}
    lines = ["| shortcut | against | candidates | tau | rho |", "|---" * 5 + "|"]
    full = "loss on all calibration tokens"
    for tokens, early in stage_losses(blocks, len(ids), ids.shape[1], config.measure.stage_tokens).items():
        lines.append(row(f"first {tokens:,} tokens", full, early, losses, seed))
    estimates = {trial.trial: fidelity.estimate(trial) for trial in again}
    lines.append(row("estimate of a stopped one", full, estimates, losses, seed))
    guide = fidelity.stack.genomes[0].guide
    if guide is not None:
        sums = {number: importance_lost(spec, guide) for number, spec in fidelity.specs.items()}
        lines.append(row("learned importance", full, sums, losses, seed))
    sizes = {number: -float(trial.params) for number, trial in fidelity.trials.items()}
    lines.append(row("parameters (size alone)", full, sizes, losses, seed))
    front = result.front
    held_out = {one.trial: math.log(one.held_out_perplexity) for one in front if one.held_out_perplexity}
    lines.append(row(full, "held-out loss", losses, held_out, seed))
    trained = {one.trial: one.short_training.loss for one in front if one.short_training and one.short_training.loss}
    if trained:
        lines.append(row(full, "loss after short training", losses, trained, seed))
    if inputs.precision != "fp32":
        some = one_of_each_stratum(list(whole.values()), min(count, len(whole)), rng)
        exact = fidelity.blocks(some, "fp32", max(1, int(len(ids) * FP32_SHARE)))
        ours = {number: float(np.mean(blocks[number][: len(one)])) for number, one in exact.items()}
        theirs = {number: float(np.mean(one)) for number, one in exact.items()}
        lines += [row(inputs.precision, "fp32", ours, theirs, seed), "", f"{inputs.precision} against fp32: "
                  + absolute_errors(ours, theirs)]  # fmt: skip
    values = {trial.trial: fidelity.objectives(losses[trial.trial], trial.cost) for trial in again}
    rows = [fidelity.objectives(losses[member.trial], member.cost) for member in front]
    wrong = wrongly_stopped(values, np.array(rows)) if values else []
    low, high = wilson_interval(len(wrong), len(again)) if again else (0.0, 1.0)
    return [
        *lines, "",
        f"{len(stopped)} of {len(ranked)} candidates were stopped; of {len(again)} measured to the end, {len(wrong)} "
        f"would be on the front ({low:.0%} to {high:.0%} of all).",
        f"Their estimates: {absolute_errors(estimates, losses)}.",
    ]


def main() -> None:
    """Print the tables."""
    parser = run_argument(__doc__ or "")
    parser.add_argument("--count", type=int, default=6, help="candidates to measure again of each kind")
    parser.add_argument("--workers", type=int, default=0, help="candidates at once; 0: in this process")
    given = parser.parse_args()
    config, result, trials = load_result(given.run)
    threads = config.machine.threads
    session = ray_session(None, given.workers * threads) if given.workers else contextlib.nullcontext()
    with session:
        inputs, stack = load_stack(config, given.workers)
        print(machine_line())
        print("\n".join(tables(Fidelity(config, inputs, stack, trials, given.workers), result, given.count)))


if __name__ == "__main__":
    main()
