"""A search from its options to its run folder, phase by phase."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count, format_seconds
from slm_ray.data import describe_parts, summarise_parts
from slm_ray.records.budget import QUANTITIES
from slm_ray.records.files import write_json
from slm_ray.records.lineage import LINEAGE_FILE
from slm_ray.records.search import Trial
from slm_ray.records.subnet import SubnetSpec
from slm_ray.report import build_report, load_run, summary_text
from slm_ray.report.tracked import send_results
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.runfolder import LOG_FILE, TRIALS_FILE, RunFolder
from slm_ray.runtime.session import ray_session
from slm_ray.runtime.trackers import NoTracker, Tracker, group_of, make_tracker
from slm_ray.search import spending
from slm_ray.search.algorithms import make_algorithm
from slm_ray.search.audit import Audit, audit_search
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import EvaluatorSettings
from slm_ray.search.export import export_winner, write_cards
from slm_ray.search.finalists import pick_trained_winners, train_finalists
from slm_ray.search.finish import baselines_at, front_entries, pick_winners, teacher_entry
from slm_ray.search.held_out import TextMeasurement
from slm_ray.search.inputs import SearchInputs, keep_digests, prepare_inputs, search_workers, with_kept_precision
from slm_ray.search.journal import Journal
from slm_ray.search.phases import HELD_OUT, OTHER_TEXT, PHASES_FILE, PhaseRecord
from slm_ray.search.plan import SearchPlan
from slm_ray.search.rank import Ranking, bind_genomes, rank_units
from slm_ray.search.reconstruction import (
    RECONSTRUCTION_FOLDER,
    Member,
    Reconstruction,
    describe_reconstruction,
)
from slm_ray.search.tracking import SearchTracking
from slm_ray.search.trained import Trained
from slm_ray.search.tuning import run_plan, scratch_folder

RESULT_FILE = "result.json"
_PHASES = 6  # and one more each for finalists, an audit and reconstruction


class SearchRun:
    """One search. Its phases are run in order by :meth:`execute`; each reads what the earlier ones left."""

    def __init__(self, config: SearchConfig, folder: RunFolder, command: str) -> None:
        """Prepare a run in an open folder.

        Args:
            config: The options.
            folder: Where everything goes.
            command: The command line, for the record.
        """
        self.config, self.folder, self.command = config, folder, command
        self.console = Console(folder.file(LOG_FILE))
        self.workers = config.workers or search_workers(config)
        self.phases = PhaseRecord(folder.file(PHASES_FILE))
        self.console.on_progress = self.phases.note
        self._phase_number = 0
        self.tracker: Tracker = NoTracker()

    def execute(self) -> None:
        """Run every phase and leave a finished run folder.

        Raises:
            UserError: Something the user can fix went wrong; what was finished is kept.
        """
        self.console.line(f"run folder: {self.folder.path}")
        try:
            self._execute()
        finally:
            self.tracker.finish()

    def _execute(self) -> None:
        inputs = self._timed("teacher and text", "inputs", self._inputs)
        keep_digests(self.folder, inputs)
        spending.pay_teacher_text(self.phases, self.config, inputs)
        with ray_session(self.config.address, self.workers * self.config.threads):
            ranking = self._timed("unit importance", "importance", lambda: self._rank(inputs))
            plan = self._plan(inputs, ranking)
            self._timed("search", "search", lambda: self._search(inputs, ranking, plan))
            trained = self._train_finalists(inputs, plan)
            result = self._timed("held-out text", "final", lambda: self._measure(inputs, ranking, plan, trained))
            if self.config.audit:
                audit = Audit(self.config, inputs, ranking, plan, self.folder.path, self.console, self.workers)
                self._timed("audit of shortcuts", "audit", lambda: audit_search(audit, result))
        if self.config.reconstruct != "none":
            self._timed("reconstruction", "reconstruction", lambda: self._reconstruct(inputs, plan, result))
        self._timed("winners", "export", lambda: self._export(inputs, plan, result))
        self._timed("report", "report", lambda: self._report(result, inputs))
        send_results(self.tracker, self.folder.path)

    def _timed(self, label: str, name: str, phase: Callable[[], Any]) -> Any:
        self._phase_number += 1
        phases = _PHASES + bool(self.config.finalists) + (self.config.reconstruct != "none")
        phases += bool(self.config.audit)
        number = f"[{self._phase_number}/{phases}]"
        self.console.line(f"{number} {label} …")
        before = self.phases.seconds().get(name, 0.0)
        with self.phases.phase(name):
            value = phase()
        self.console.line(f"{number} {label}: {format_seconds(self.phases.seconds()[name] - before)}")
        return value

    def _inputs(self) -> SearchInputs:
        return prepare_inputs(with_kept_precision(self.config, self.folder.path), self.console)

    def _rank(self, inputs: SearchInputs) -> Ranking:
        progress = Progress(self.console, "unit importance", self.config.importance_steps, "steps")
        ranking = rank_units(self.config, inputs, progress)
        spending.pay_unit_scores(self.phases, self.config, inputs, ranking.tokens)
        return ranking

    def _plan(self, inputs: SearchInputs, ranking: Ranking) -> SearchPlan:
        stack = bind_genomes(self.config, inputs, ranking)
        objectives = self.config.objective_names()
        config = self.config
        factor = config.screen_factor()
        algorithm = make_algorithm(config.algorithm, stack, objectives, config.population, config.seed, factor)
        journal = Journal(self.folder.file(TRIALS_FILE))
        if journal.resumed:
            self.console.line(f"{journal.resumed} trials are on record and are not measured again")
        at = self.phases.generation_seconds
        return SearchPlan(stack, algorithm, objectives, journal, self.config.trials, seconds_at=at)

    def _settings(self, inputs: SearchInputs, ranking: Ranking) -> EvaluatorSettings:
        return EvaluatorSettings(
            teacher=inputs.teacher, precision=inputs.precision, ids=inputs.calibration.ids,
            proxies=self.config.needed_proxies(), stage_tokens=self.config.stage_tokens(),
            confidence=self.config.confidence, threads=self.config.threads, scores=ranking.by_method(),
            device=inputs.device,
        )  # fmt: skip

    def _search(self, inputs: SearchInputs, ranking: Ranking, plan: SearchPlan) -> None:
        progress = Progress(self.console, "search", self.config.trials, "trials", plan.journal.resumed)
        self.tracker = self._make_tracker()
        tracking = SearchTracking(plan, self.tracker)

        def on_record(record: Trial) -> None:
            best = plan.measured_front()
            note = f"best {self._show(best[0])}" if best else ""
            progress.update(len(plan.journal), note)
            tracking.update()

        plan.on_record = on_record
        # On a cluster trials take all CPUs, those of machines that join too, unless --workers limits them.
        limit = self.config.workers if self.config.address else None
        room = max(self.workers, self.config.population) if self.config.address and limit is None else self.workers
        run_plan(plan, self._settings(inputs, ranking), room, scratch_folder(self.folder.path), limit)
        plan.journal.close()
        tracking.update()

    def _show(self, record: Trial) -> str:
        parts = [f"{name} {value:.4g}" for name, value in (record.objectives or {}).items() if name not in QUANTITIES]
        return f"{', '.join(parts)} at {format_count(record.params)}"

    def _make_tracker(self) -> Tracker:
        return make_tracker(
            self.config.tracker, self.folder.path, group=group_of(self.folder.path), job_type="search",
            tags=["search", Path(self.config.space).stem, self.config.algorithm],
            config=self.config.to_json() | {"command": self.command}, say=self.console.line,
        )  # fmt: skip

    def _train_finalists(self, inputs: SearchInputs, plan: SearchPlan) -> dict[int, Trained]:
        if not self.config.finalists:
            return {}

        def train() -> dict[int, Trained]:
            return train_finalists(self.config, inputs, plan, self.folder, self.console)

        return dict(self._timed("short training of finalists", "finalists", train))

    def _measure(
        self, inputs: SearchInputs, ranking: Ranking, plan: SearchPlan, trained: dict[int, Trained]
    ) -> dict[str, Any]:
        front = plan.measured_front()
        if not front:
            raise UserError("no candidate was measured to the end: see the errors in trials.jsonl")
        quantity, length = inputs.budget.quantity, self.config.sequence_length
        if trained:
            winners = pick_trained_winners(front, trained, quantity, self.config.winners)
        else:
            winners = pick_winners(front, quantity, self.config.winners)
        chosen = front_entries(plan, front, winners, trained)
        best_cost = front[winners[0]].cost[quantity]
        baselines = baselines_at(inputs, plan.stack, ranking, best_cost, length, self.config.seed)
        others = [teacher_entry(inputs, length), *baselines]
        work = TextMeasurement(self.config, self.phases, self.console)
        entries = work.measure(HELD_OUT, inputs.held_out, (inputs, others), (inputs, chosen))
        if inputs.other is not None:
            won = [chosen[position] for position in winners]
            found = work.measure(OTHER_TEXT, inputs.other, (inputs, others[:1]), (inputs, won))
            places = [0, *(len(others) + position for position in winners)]
            for place, more in zip(places, found, strict=True):
                entries[place] |= more
        spent = spending.spent(self.phases, plan, trained, self.workers)
        return {
            "command": self.command,
            "objectives": list(plan.objectives),
            "teacher": entries[0],
            "corpus": self._corpus(inputs),
            "budget": {"quantity": quantity, "low": inputs.budget.low, "high": inputs.budget.high},
            "precision": inputs.precision,
            "front": entries[len(others) :],
            "baselines": entries[1 : len(others)],
            "hypervolume": [point.to_json() for point in plan.history],
            "spent": spent,
            "winners": [
                {"folder": f"winners/{rank}", "trial": front[position].trial} for rank, position in enumerate(winners)
            ],
        }

    def _corpus(self, inputs: SearchInputs) -> dict[str, Any]:
        tokens = {
            "calibration_tokens": inputs.calibration.num_tokens,
            "held_out_tokens": inputs.held_out.num_tokens,
            "train_tokens": inputs.train.num_tokens,
        }
        digest = inputs.corpus.digest
        return {
            "name": inputs.corpus.name,
            "digest": digest,
            **tokens,
            "parts": describe_parts(summarise_parts(inputs.corpus)),
        } | ({"other": {"name": self.config.other_data, "tokens": inputs.other.num_tokens}} if inputs.other else {})

    def _reconstruct(self, inputs: SearchInputs, plan: SearchPlan, result: dict[str, Any]) -> None:
        """Fit the weights of winners, or of the whole front; winners' folders are written as they are done."""
        wanted = self.config.reconstruct == "all"
        entries = {entry["trial"]: entry for entry in result["front"] if wanted or entry["winner"] is not None}
        by_trial = {record.trial: record for record in plan.journal}
        folders = {winner["trial"]: self.folder.path / winner["folder"] for winner in result["winners"]}
        members = [
            Member(
                trial, self._spec_of(plan, by_trial[trial]), entry["cost"]["params"], trial in folders,
                by_trial[trial].full_measurements.get("perplexity"),
            )
            for trial, entry in entries.items()
        ]  # fmt: skip
        progress = Progress(self.console, "reconstruction", len(members), "models")

        def on_member(trial: int, record: dict[str, Any]) -> None:
            progress.update(progress.done, f"trial {trial}: {describe_reconstruction(record)}")

        def save(trial: int, student: Any, record: dict[str, Any]) -> None:
            lineage = self._lineage(inputs, by_trial[trial]) | {"reconstruction": record}
            export_winner(inputs, self._spec_of(plan, by_trial[trial]), folders[trial], lineage, student)

        records = self.folder.file(RECONSTRUCTION_FOLDER)
        work = Reconstruction(inputs, records, on_member=on_member, on_part=progress.update)
        found = work.run(members, save, lambda trial: (folders[trial] / LINEAGE_FILE).is_file())
        for trial, entry in entries.items():
            entry["reconstruction"] = found[trial]
        spent = work.spent(members)
        result["spent"]["reconstruction"] = spent
        result["spent"]["flops"] += spent["flops"]
        result["spent"]["forward_tokens"] += spent["tokens"]

    def _spec_of(self, plan: SearchPlan, record: Trial) -> SubnetSpec:
        return plan.stack.decode(plan.stack.from_text(record.genes))

    def _lineage(self, inputs: SearchInputs, record: Trial) -> dict[str, Any]:
        return {
            "teacher": {
                "name": inputs.teacher.name, "family": inputs.architecture.structure.family,
                "digest": inputs.teacher.digest, "licence": inputs.teacher.licence,
            },
            "trial": record.trial, "genes": record.genes, "space": inputs.space.to_json(),
            "inputs": inputs.digests(), "command": self.command,
        }  # fmt: skip

    def _export(self, inputs: SearchInputs, plan: SearchPlan, result: dict[str, Any]) -> None:
        """Extract the winners whose folders reconstruction has not written."""
        by_trial = {record.trial: record for record in plan.journal}
        progress = Progress(self.console, "winners", len(result["winners"]), "models")
        for number, winner in enumerate(result["winners"]):
            record, folder = by_trial[winner["trial"]], self.folder.path / winner["folder"]
            if self.config.reconstruct == "none":
                export_winner(inputs, self._spec_of(plan, record), folder, self._lineage(inputs, record))
            progress.update(number + 1)

    def _report(self, result: dict[str, Any], inputs: SearchInputs) -> None:
        write_cards(self.folder.path, result, self.config.to_json(), inputs, datetime.now(UTC).date().isoformat())
        result["spent"]["seconds"] = self.phases.seconds()
        write_json(self.folder.file(RESULT_FILE), result)
        build_report(self.folder.path)


def print_summary(folder: Path) -> None:
    """Print what a finished run found, what it cost and what to do next."""
    print(summary_text(load_run(folder)))
