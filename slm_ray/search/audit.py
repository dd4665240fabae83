"""``--audit``: some candidates measured again, the whole way, to see what the search's shortcuts got wrong.

It changes nothing that the search found. What it measures is appended to ``audit.jsonl`` one by one, so that a resumed
run measures none of it twice; ``fidelity.json`` appears whole at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.exceptions import RayError

from slm_ray.models.scores import UnitScores
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import write_json
from slm_ray.records.jsonl import RecordWriter, read_records
from slm_ray.records.search import Measurement
from slm_ray.records.subnet import SubnetSpec
from slm_ray.runtime.progress import Console, Progress
from slm_ray.search import fidelity
from slm_ray.search.config import SearchConfig
from slm_ray.search.correlation import RESAMPLES
from slm_ray.search.evaluator import DTYPES, EvaluatorSettings
from slm_ray.search.fidelity import FP32, FULL, HELD_OUT, RECORDED, TRAINED, Losses, Shortcut
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.measuring import Measurements, measure_in_full
from slm_ray.search.plan import SearchPlan
from slm_ray.search.rank import ACTIVATION_SEQUENCES, Ranking
from slm_ray.search.registry import PROXIES
from slm_ray.search.staged import perplexity_of
from slm_ray.search.static import block_influence_kept, importance_lost, magnitude_kept

AUDIT_FILE, FIDELITY_FILE = "audit.jsonl", "fidelity.json"
_STOPPED, _WHOLE, _SCORED = 1, 2, 3  # so that the draws of one list do not depend on those of another


class Audit:
    """The audit of one finished search."""

    def __init__(
        self, config: SearchConfig, inputs: SearchInputs, ranking: Ranking, plan: SearchPlan, folder: Path,
        console: Console, workers: int,
    ) -> None:  # fmt: skip
        """Read what an earlier process measured.

        Args:
            config: The options.
            inputs: What the search started from.
            ranking: Its unit scores.
            plan: The plan, at its end.
            folder: The run folder.
            console: Where to say how far it is.
            workers: How many candidates are measured at once.

        Raises:
            UserError: The audit's records are damaged.
        """
        self.config, self.inputs, self.ranking, self.plan = config, inputs, ranking, plan
        self.folder, self.console, self.workers = folder, console, workers
        self.records = {record.trial: record for record in plan.journal if record.status == "done"}
        first = plan.objectives[0]
        self.is_staged = PROXIES[first].staged
        self.proxy = first if self.is_staged else "perplexity"  # what "measured in full" means
        self.specs: dict[int, SubnetSpec] = {}
        self._known: dict[tuple[str, int], Measurement] = {}
        for record in read_records(folder / AUDIT_FILE):
            entry = record["measurements"].get(self.proxy)
            if entry is not None:
                self._known[record["precision"], record["trial"]] = Measurement.model_validate(entry)

    def run(self, front: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Measure, compare, and write ``fidelity.json``.

        Args:
            front: The entries of the front, with their held-out figures and, of finalists, what training gave.

        Returns:
            What was found, without its single points, and what it cost.

        Raises:
            UserError: A record could not be written.
        """
        stopped, whole, scored = self._pick()
        wanted = [(self.inputs.precision, [*stopped, *scored])]
        if self.inputs.precision != "fp32":
            wanted.append(("fp32", whole))
        self._measure(wanted)
        blocks = {trial: one.blocks for (precision, trial), one in self._known.items()
                  if precision == self.inputs.precision}  # fmt: skip
        if self.is_staged:
            blocks |= {trial: record.measurements[self.proxy].blocks
                       for trial, record in self.records.items() if record.is_full}  # fmt: skip
        losses = {trial: fidelity.full_loss(values) for trial, values in blocks.items() if trial in self.records}
        spent = self._spent()
        blocks = {trial: blocks[trial] for trial in losses}
        shortcuts = self._compare(blocks, losses, front)
        record: dict[str, Any] = {
            "audit": self.config.audit, "seed": self.config.seed, "resamples": RESAMPLES, "proxy": self.proxy,
            "shortcuts": shortcuts,
            "race": self._race(losses) if self.is_staged and self.config.stage_tokens() else None,
            "precision": self._precision(blocks), "spent": spent,
        }  # fmt: skip
        write_json(self.folder / FIDELITY_FILE, record)
        shown = [{name: part for name, part in one.items() if name != "points"} for one in shortcuts]
        return record | {"shortcuts": shown}, spent

    # What is measured again

    def _pick(self) -> tuple[list[int], list[int], list[int]]:
        """Trials to measure: stopped ones to the end, whole ones in fp32, and any where the search read no text."""
        count, seed = self.config.audit, self.config.seed
        by_loss = sorted(self.records, key=lambda trial: (self._estimate(trial), trial))
        stopped = sorted(trial for trial, record in self.records.items() if record.decided == "dominated")
        if not self.is_staged:
            return [], [], fidelity.spread(by_loss, count, (seed, _SCORED))
        whole = [trial for trial in by_loss if self.records[trial].is_full]
        return fidelity.spread(stopped, count, (seed, _STOPPED)), fidelity.spread(whole, count, (seed, _WHOLE)), []

    def _estimate(self, trial: int) -> float:
        """A candidate's first objective as the search knows it, less being better; of perplexity the loss."""
        return self.plan.values_of(self.records[trial])[0]

    def _measure(self, wanted: list[tuple[str, list[int]]]) -> None:
        left = {precision: [t for t in trials if (precision, t) not in self._known] for precision, trials in wanted}
        progress = Progress(self.console, "audit of shortcuts", sum(map(len, left.values())), "candidates")
        done = 0
        with RecordWriter(self.folder / AUDIT_FILE) as writer:
            for precision, trials in left.items():
                if not trials:
                    continue

                def on_done(trial: int, found: Measurements, precision: str = precision) -> None:
                    nonlocal done
                    measurements = {name: one.rounded().to_json() for name, one in found.items()}
                    writer.append({"trial": trial, "precision": precision, "measurements": measurements})
                    # As it is read back, so that a resumed run rounds alike.
                    self._known[precision, trial] = found[self.proxy].rounded()
                    done += 1
                    progress.update(done)

                ids = self.inputs.calibration.ids
                settings = EvaluatorSettings(
                    teacher=self.inputs.teacher, precision=precision,
                    ids=ids if precision == self.inputs.precision else ids[: fidelity.num_in_fp32(len(ids))],
                    proxies=(self.proxy,), stage_tokens=(), confidence=self.config.confidence,
                    threads=self.config.threads, device=self.inputs.device,
                )  # fmt: skip
                self.inputs.teacher.state_as(DTYPES[precision])  # made once, before many workers need it
                try:
                    measure_in_full(settings, {trial: self._spec(trial) for trial in trials}, self.workers, on_done)
                except RayError as error:  # an audit is no reason to lose a search
                    said = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
                    self.console.line(f"the audit goes on without some candidates that could not be measured: {said}")

    def _spec(self, trial: int) -> SubnetSpec:
        if trial not in self.specs:
            self.specs[trial] = self.plan.stack.decode(self.plan.stack.from_text(self.records[trial].genes))
        return self.specs[trial]

    def _spent(self) -> dict[str, Any]:
        """What the audit computed, an earlier process's part included."""
        used = [(trial, one.tokens) for (_, trial), one in self._known.items() if trial in self.records]
        return {
            "models": len(used), "tokens": sum(tokens for _, tokens in used),
            "flops": float(sum(tokens * self.records[trial].cost.flops for trial, tokens in used)),
        }  # fmt: skip

    # What is compared

    def _compare(
        self, blocks: Mapping[int, Sequence[float]], losses: Losses, front: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        seed, tokens = self.config.seed, self.inputs.calibration.ids.size
        trained = {e["trial"]: e["short_training"]["loss"] for e in front if e.get("short_training", {}).get("loss")}
        held_out = {entry["trial"]: math.log(entry["held_out_perplexity"]) for entry in front}
        looked_at = fidelity.evenly(sorted({*losses, *trained}), fidelity.MOST)
        whole = self._read("all calibration tokens", "full", losses, tokens)
        cheap = [*self._stages(blocks), *self._scores(looked_at), self._size()]
        if not self.is_staged:
            values = {trial: self._estimate(trial) for trial in self.records}
            cheap.insert(0, Shortcut(self.plan.objectives[0], "objective", values))
        found = [fidelity.compare(one, FULL, losses, seed) for one in cheap]
        if self.is_staged and self.config.stage_tokens():
            found.append(fidelity.compare(self._raced(), FULL, losses, seed))
        found.append(fidelity.compare(whole, HELD_OUT, held_out, seed))
        if self.inputs.precision != "fp32":
            ours, theirs, read = self._in_both(blocks)
            name = f"{self.inputs.precision} on {read:,} tokens"
            found.append(fidelity.compare(self._read(name, "precision", ours, read), FP32, theirs, seed))
        if predicted := self._predicted():
            recorded = {trial: self._estimate(trial) for trial in self.records}
            found.append(fidelity.compare(Shortcut("prediction", "surrogate", predicted), RECORDED, recorded, seed))
        if trained:
            after = self._read("held-out loss", HELD_OUT, held_out, self.inputs.held_out.num_tokens)
            found += [fidelity.compare(one, TRAINED, trained, seed) for one in (*cheap, whole, after)]
        return found

    def _read(self, name: str, kind: str, values: Losses, tokens: float) -> Shortcut:
        """A shortcut that reads text: its FLOPs are those of the candidates' mean."""
        flops = [self.records[trial].cost.flops for trial in values]
        return Shortcut(name, kind, values, tokens, tokens * float(np.mean(flops)) if flops else 0.0)

    def _stages(self, blocks: Mapping[int, Sequence[float]]) -> list[Shortcut]:
        if not self.is_staged:
            return []
        ids = self.inputs.calibration.ids
        found = fidelity.stage_losses(blocks, len(ids), ids.shape[1], self.config.stage_tokens())
        return [self._read(f"first {tokens:,} tokens", "stage", losses, tokens) for tokens, losses in found.items()]

    def _raced(self) -> Shortcut:
        """The estimates of stopped candidates, each as far as it was measured."""
        stopped = [trial for trial, record in self.records.items() if record.decided == "dominated"]
        tokens = [self.records[trial].measurements[self.proxy].tokens for trial in stopped]
        values = {trial: self._estimate(trial) for trial in stopped}
        return self._read("estimate of a stopped one", "race", values, float(np.mean(tokens)) if tokens else 0.0)

    def _scores(self, trials: Sequence[int]) -> list[Shortcut]:
        """What the unit scores at hand say of a candidate; nothing where the space is searched in natural order."""
        step = 2.0 * self.config.importance_tokens * self._teacher_flops()
        given: list[tuple[str, UnitScores, float]] = []
        if self.ranking.one_shot is not None:
            given.append(("importance", self.ranking.one_shot, step))
        if self.ranking.learned and self.ranking.learned[-1] is not self.ranking.one_shot:
            if self.config.importance_steps > 1:
                given.append(("learned importance", self.ranking.learned[-1], step * self.config.importance_steps))
        found = [
            Shortcut(name, "scores", {t: importance_lost(self._spec(t), scores) for t in trials}, shared_flops=flops)
            for name, scores, flops in given
        ]
        for name, method, function in (
            ("magnitude", "magnitude", magnitude_kept), ("block influence", "activation", block_influence_kept),
        ):  # fmt: skip
            if method in self.ranking.others:
                scores = self.ranking.others[method]
                read = min(ACTIVATION_SEQUENCES, len(self.inputs.train.ids)) * self.config.sequence_length
                flops = 0.0 if method == "magnitude" else read * self._teacher_flops()
                values = {trial: -function(self._spec(trial), scores) for trial in trials}
                found.append(Shortcut(name, "scores", values, shared_flops=flops))
        return found

    def _teacher_flops(self) -> float:
        return float(flops_per_token(self.inputs.architecture, self.config.sequence_length))

    def _size(self) -> Shortcut:
        values = {trial: -float(record.cost.params) for trial, record in self.records.items()}
        return Shortcut("parameters", "size", values)

    def _in_both(self, blocks: Mapping[int, Sequence[float]]) -> tuple[dict[int, float], dict[int, float], int]:
        """Losses in the search's type and in fp32, by trial, on what both have read, and how many tokens that is."""
        in_fp32 = {trial: one for (precision, trial), one in self._known.items() if precision == "fp32"}
        known = {trial: one for trial, one in in_fp32.items() if trial in blocks}
        ours = {trial: fidelity.full_loss(blocks[trial][: len(one.blocks)]) for trial, one in known.items()}
        theirs = {trial: fidelity.full_loss(one.blocks) for trial, one in known.items()}
        return ours, theirs, max((one.tokens for one in known.values()), default=0)

    def _predicted(self) -> dict[int, float]:
        """What a surrogate expected of candidates before they were measured."""
        screen = getattr(self.plan.algorithm, "screen", None)
        if screen is None:
            return {}
        expected = {trial: screen.predictions.get(record.genes) for trial, record in self.records.items()}
        return {trial: value for trial, value in expected.items() if value is not None}

    def _race(self, losses: Losses) -> dict[str, Any]:
        stopped = {trial for trial, record in self.records.items() if record.decided == "dominated"}
        audited = sorted(stopped & set(losses))
        values = {}
        for trial in audited:
            loss, record = losses[trial], self.records[trial]
            value = perplexity_of(loss) if self.proxy == "perplexity" else loss
            values[trial] = self.plan.values((record.objectives or {}) | {self.proxy: value})
        front = np.array([self.plan.values_of(record) for record in self.plan.measured_front()])
        wrong = fidelity.wrongly_stopped(values, front)
        return fidelity.race_record(len(stopped), {trial: self._estimate(trial) for trial in audited}, losses, wrong)

    def _precision(self, blocks: Mapping[int, Sequence[float]]) -> dict[str, Any] | None:
        if self.inputs.precision == "fp32":
            return None
        ours, theirs, tokens = self._in_both(blocks)
        return {"computed_in": self.inputs.precision, "tokens": tokens, **fidelity.off_by(ours, theirs)}


def audit_search(audit: Audit, result: dict[str, Any]) -> None:
    """Run an audit, and put what it found and what it cost into a search's result.

    Raises:
        UserError: A record could not be written.
    """
    found, spent = audit.run(result["front"])
    result["fidelity"] = found
    result["spent"]["audit"] = spent
    result["spent"]["flops"] += spent["flops"]
    result["spent"]["forward_tokens"] += spent["tokens"]
