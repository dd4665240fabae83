"""A search from its options to its run folder, phase by phase."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from slm_ray.config.base import flatten
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count, format_seconds
from slm_ray.data import describe_parts, summarise_parts
from slm_ray.models.precision import DTYPES, export_dtype
from slm_ray.records.base import find_record, read_record, write_record
from slm_ray.records.lineage import Lineage
from slm_ray.records.run import RunRecord, keep_unchanged
from slm_ray.records.search import (
    BudgetRange,
    Corpus,
    OtherText,
    Phases,
    Reconstruction,
    SearchInputsRecord,
    SearchResult,
    ShortTraining,
    Trial,
    Winner,
)
from slm_ray.report.search_report import build_report
from slm_ray.report.tracked import send_results
from slm_ray.runtime.fan_out import Share
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.runfolder import LOG_FILE, RunFolder
from slm_ray.runtime.session import ray_session
from slm_ray.runtime.trackers import NoTracker, Tracker, group_of, make_tracker
from slm_ray.search import spending
from slm_ray.search.algorithms import make_algorithm
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import EvaluatorSettings, share_of
from slm_ray.search.inputs import SearchInputs, prepare_inputs, search_workers
from slm_ray.search.journal import Journal
from slm_ray.search.measuring import run_plan_here
from slm_ray.search.plan import SearchPlan
from slm_ray.search.reconstruction import RECONSTRUCTION_FOLDER, Member, Reconstructor, describe_reconstruction
from slm_ray.search.spending import HELD_OUT, OTHER_TEXT, PhaseRecord
from slm_ray.search.tracking import SearchTracking
from slm_ray.search.unit_scores import Ranking, bind_genomes, rank_units
from slm_ray.search.winners import (
    Chosen,
    TextMeasurement,
    baselines_at,
    export_winner,
    front_members,
    lineage_of,
    pick_finalists,
    pick_spread,
    pick_trained,
    spec_of,
    teacher_model,
    write_cards,
)

T = TypeVar("T")
FINALISTS_FOLDER = "finalists"
_PHASES = 6  # and one more each for finalists and reconstruction


class SearchRun:
    """One search. Its phases are run in order by :meth:`execute`; each reads what the earlier ones left."""

    def __init__(self, config: SearchConfig, folder: RunFolder) -> None:
        """Prepare a run in an open folder.

        Args:
            config: The options.
            folder: Where everything goes.
        """
        self.config, self.folder = config, folder
        self.command = read_record(folder.path, RunRecord).command
        self.console = Console(folder.file(LOG_FILE))
        self.phases = PhaseRecord(folder.path)
        self.console.on_progress = self.phases.note
        self.workers = search_workers(config)
        self.tracker: Tracker = NoTracker()
        self._phase_number = 0

    def execute(self) -> None:
        """Run every phase and leave a finished run folder.

        Raises:
            UserError: Something the user can fix went wrong; what was finished is kept.
        """
        self.console.line(f"run folder: {self.folder.path}")
        try:
            inputs = self._timed("teacher and text", "inputs", self._inputs)
            self.folder.begin()
            with self._ray():
                result, plan = self._search_and_measure(inputs)
            found = result
            if self.config.reconstruction.reconstruct != "none":
                fit = lambda: self._reconstruct(inputs, plan, result)  # noqa: E731
                found = self._timed("reconstruction", "reconstruction", fit)
            final = self._timed("winners", "export", lambda: self._export(inputs, plan, found))
            self._timed("report", "report", lambda: self._report(final))
            send_results(self.tracker, self.folder.path)
        except BaseException:
            if not self.folder.begun:
                for record in (Phases, SearchInputsRecord):
                    self.folder.file(record.FILE).unlink(missing_ok=True)
            raise
        finally:
            self.tracker.finish()

    def _ray(self) -> contextlib.AbstractContextManager[None]:
        """Ray, where anything is computed in other processes."""
        machine = self.config.machine
        if not self.workers and not self.config.winners.finalists:
            return contextlib.nullcontext()
        return ray_session(machine.address, max(1, self.workers) * machine.threads, machine.storage)

    def _timed(self, label: str, name: str, phase: Callable[[], T]) -> T:
        self._phase_number += 1
        phases = _PHASES + bool(self.config.winners.finalists) + (self.config.reconstruction.reconstruct != "none")
        number = f"[{self._phase_number}/{phases}]"
        self.console.line(f"{number} {label} …")
        before, threads = self.phases.seconds().get(name, 0.0), torch.get_num_threads()
        with self.phases.phase(name):
            value = phase()
        torch.set_num_threads(threads)  # a phase in this process computes with --threads
        self.console.line(f"{number} {label}: {format_seconds(self.phases.seconds()[name] - before)}")
        return value

    def _inputs(self) -> SearchInputs:
        before = find_record(self.folder.path, SearchInputsRecord)
        inputs = prepare_inputs(self.config, self.console, None if before is None else before.precision)
        keep_unchanged(self.folder.path, inputs.record())
        spending.pay_inputs(self.phases, inputs)
        return inputs

    def _search_and_measure(self, inputs: SearchInputs) -> tuple[SearchResult, SearchPlan]:
        at_once = self._processes(share_of(inputs.device, self.config.machine.threads))
        ranking = self._timed("unit importance", "importance", lambda: self._rank(inputs, at_once))
        plan = self._plan(inputs, ranking)
        self._timed("search", "search", lambda: self._search(inputs, ranking, plan))
        trained: dict[int, ShortTraining] = {}
        if self.config.winners.finalists:
            train = lambda: self._train_finalists(inputs, plan)  # noqa: E731
            trained = self._timed("short training of finalists", "finalists", train)
        measure = lambda: self._measure(inputs, ranking, plan, trained, at_once)  # noqa: E731
        return self._timed("held-out text", "final", measure), plan

    def _processes(self, share: Share) -> int:
        """How many processes compute side by side in the phases around the search."""
        if not self.workers or not self.config.machine.address or self.config.machine.workers:
            return self.workers
        import ray

        return max(1, share.how_many_fit(ray.cluster_resources()))

    def _rank(self, inputs: SearchInputs, workers: int) -> Ranking:
        progress = Progress(self.console, "unit importance", self.config.scores.importance_steps, "steps")
        ranking = rank_units(self.config, inputs, progress, workers)
        spending.pay_unit_scores(self.phases, inputs, ranking.tokens)
        return ranking

    def _plan(self, inputs: SearchInputs, ranking: Ranking) -> SearchPlan:
        asked, stack = self.config.plan, bind_genomes(self.config, inputs, ranking)
        objectives, screen = asked.objective_names, asked.screen_factor
        algorithm = make_algorithm(asked.algorithm, stack, objectives, asked.population, asked.seed, screen)
        journal = Journal(self.folder.file(Trial.FILE))
        if journal.resumed:
            self.console.line(f"{journal.resumed} trials are on record and are not measured again")
        at = self.phases.generation_seconds
        return SearchPlan(stack, algorithm, objectives, journal, asked.trials, seconds_at=at)

    def _search(self, inputs: SearchInputs, ranking: Ranking, plan: SearchPlan) -> None:
        config, machine, measure = self.config, self.config.machine, self.config.measure
        progress = Progress(self.console, "search", config.plan.trials, "trials", plan.journal.resumed)
        self.tracker = make_tracker(
            machine.tracker, self.folder.path, group=group_of(self.folder.path), job_type="search",
            tags=["search", Path(config.space.space).stem, config.plan.algorithm],
            config=flatten(config) | {"command": self.command}, say=self.console.line,
        )  # fmt: skip
        tracking = SearchTracking(plan, self.tracker)

        def on_record(trial: Trial) -> None:
            best = plan.measured_front()
            progress.update(len(plan.journal), f"best {_figures(best[0])}" if best else "")
            tracking.update()

        plan.on_record = on_record
        settings = EvaluatorSettings(
            teacher=inputs.teacher, precision=inputs.precision, ids=inputs.calibration.ids,
            proxies=config.plan.needed_proxies, stage_tokens=measure.stage_tokens, confidence=measure.confidence,
            threads=machine.threads, scores=ranking.by_method(), device=inputs.device,
        )  # fmt: skip
        if not self.workers:
            run_plan_here(plan, settings)
        else:
            from slm_ray.search.tune_workers import run_plan, scratch_folder  # Ray: imported with its settings made

            # On a cluster trials take all CPUs, those of machines that join too, unless --workers limits them.
            grows = machine.address is not None and machine.workers is None
            most = max(self.workers, config.plan.population) if grows else self.workers
            run_plan(plan, settings, most, scratch_folder(self.folder.path), grows=machine.address is not None)
        plan.journal.close()
        tracking.update()

    def _train_finalists(self, inputs: SearchInputs, plan: SearchPlan) -> dict[int, ShortTraining]:
        """Train finalists in RUN/finalists/TRIAL; gives what each one's training gave, by position in the front."""
        from slm_ray.search.short_training import ShortTrainer, short_config

        config, front = self.config, plan.measured_front()
        costs = [trial.cost[inputs.budget.quantity] for trial in front]
        positions = pick_finalists(costs, config.winners.winners, config.winners.finalists)
        options = short_config(
            inputs.teacher, config.winners.finalist_tokens, config.length, data=config.data.data,
            text_field=config.data.text_field, threads=config.machine.threads, seed=config.plan.seed,
            storage=config.machine.storage, address=config.machine.address,
        )  # fmt: skip

        def on_done(trial: int, trained: ShortTraining) -> None:
            losses = f"loss {trained.first_loss} to {trained.loss}"
            self.console.line(f"finalist {trial}: {trained.error or losses}")

        trainer = ShortTrainer(
            options, inputs.teacher, self.folder.file(FINALISTS_FOLDER), self.console, keep_models=True,
            measured_on=inputs.calibration,  # held-out text takes no part in any choice
        )  # fmt: skip
        found = trainer.train({front[at].trial: spec_of(plan.stack, front[at]) for at in positions}, on_done)
        return {at: found[front[at].trial] for at in positions}

    def _measure(
        self, inputs: SearchInputs, ranking: Ranking, plan: SearchPlan, trained: dict[int, ShortTraining], workers: int
    ) -> SearchResult:
        front, config, length = plan.measured_front(), self.config, self.config.length
        if not front:
            raise UserError(f"no candidate was measured to the end: see the errors in {self.folder.file(Trial.FILE)}")
        quantity, count = inputs.budget.quantity, config.winners.winners
        costs = [trial.cost[quantity] for trial in front]
        winners = pick_trained(costs, trained, count) if trained else pick_spread(costs, count)
        members = front_members(plan.stack, front, winners, trained)
        baselines = baselines_at(inputs, plan.stack, ranking, costs[winners[0]], length, config.plan.seed)
        work = TextMeasurement(config, inputs, self.phases, self.console, workers)
        chosen: list[Chosen] = [teacher_model(inputs, length), *baselines, *members]
        records = work.measure(HELD_OUT, inputs.held_out, chosen)
        if inputs.other is not None:
            places = [0, *(1 + len(baselines) + position for position in winners)]
            more = work.measure(OTHER_TEXT, inputs.other, [Chosen(chosen[at].spec, records[at]) for at in places])
            for place, record in zip(places, more, strict=True):
                records[place] = record
        return SearchResult(
            command=self.command, objectives=plan.objectives, teacher=records[0], corpus=self._corpus(inputs),
            budget=BudgetRange.model_validate(
                {"quantity": quantity, "low": inputs.budget.low, "high": inputs.budget.high}
            ),
            precision=inputs.precision, baselines=tuple(records[1 : 1 + len(baselines)]),
            front=tuple(records[1 + len(baselines) :]), hypervolume=tuple(plan.history),
            spent=spending.spent_on(self.phases, plan, trained, self.workers),
        )  # fmt: skip

    def _corpus(self, inputs: SearchInputs) -> Corpus:
        other = self.config.measure.other_data
        return Corpus(
            name=inputs.corpus.name, digest=inputs.corpus.digest, calibration_tokens=inputs.calibration.num_tokens,
            held_out_tokens=inputs.held_out.num_tokens, train_tokens=inputs.train.num_tokens,
            calibration_digest=inputs.calibration.digest, parts=describe_parts(summarise_parts(inputs.corpus)),
            other=OtherText(name=other, tokens=inputs.other.num_tokens) if other and inputs.other else None,
        )  # fmt: skip

    def _winner_folder(self, number: int) -> Path:
        return self.folder.path / "winners" / str(number)

    def _dtype(self, inputs: SearchInputs) -> str:
        return export_dtype(self.config.winners.dtype, inputs.teacher.dtype)

    def _reconstruct(self, inputs: SearchInputs, plan: SearchPlan, result: SearchResult) -> SearchResult:
        """Fit the weights of winners, or of the whole front; winners' folders are written as they are done."""
        wanted = self.config.reconstruction.reconstruct == "all"
        chosen = [member for member in result.front if wanted or member.winner is not None]
        trials = {trial.trial: trial for trial in plan.journal}
        folders = {member.trial: self._winner_folder(member.winner) for member in chosen if member.winner is not None}
        members = [
            Member(
                member.trial, spec_of(plan.stack, trials[member.trial]), member.params, member.trial in folders,
                trials[member.trial].full_measurements.get("perplexity"),
            )
            for member in chosen
        ]  # fmt: skip
        progress = Progress(self.console, "reconstruction", len(members), "models")

        def on_member(trial: int, record: Reconstruction) -> None:
            progress.update(progress.done, f"trial {trial}: {describe_reconstruction(record)}")

        def save(number: int, student: object, record: Reconstruction) -> None:
            trial = trials[number]
            lineage = lineage_of(inputs, trial, self.command).model_copy(update={"reconstruction": record})
            export_winner(
                inputs, spec_of(plan.stack, trial), folders[number], lineage, self._dtype(inputs), student
            )

        work = Reconstructor(
            inputs, self.folder.file(RECONSTRUCTION_FOLDER), DTYPES[self._dtype(inputs)],
            on_member=on_member, on_part=progress.update,
        )  # fmt: skip
        found = work.run(members, save, lambda trial: (folders[trial] / Lineage.FILE).is_file())
        front = tuple(
            member.model_copy(update={"reconstruction": found.get(member.trial)}) for member in result.front
        )
        spent = spending.with_reconstruction(result.spent, work.spent(members))
        return result.model_copy(update={"front": front, "spent": spent})

    def _export(self, inputs: SearchInputs, plan: SearchPlan, result: SearchResult) -> SearchResult:
        """Extract the winners whose folders reconstruction has not written."""
        trials = {trial.trial: trial for trial in plan.journal}
        chosen = [member for member in result.front if member.winner is not None]
        chosen.sort(key=lambda member: member.winner or 0)
        progress, winners = Progress(self.console, "winners", len(chosen), "models"), []
        for number, member in enumerate(chosen):
            trial, folder = trials[member.trial], self._winner_folder(number)
            if self.config.reconstruction.reconstruct == "none":
                lineage = lineage_of(inputs, trial, self.command)
                export_winner(inputs, spec_of(plan.stack, trial), folder, lineage, self._dtype(inputs))
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            winners.append(
                Winner(folder=f"winners/{number}", trial=trial.trial, num_bytes=size, dtype=self._dtype(inputs))
            )
            progress.update(number + 1)
        return result.model_copy(update={"winners": tuple(winners)})

    def _report(self, result: SearchResult) -> None:
        write_cards(self.folder.path, result, flatten(self.config))
        spent = result.spent.model_copy(update={"seconds": self.phases.seconds()})
        write_record(self.folder.path, result.model_copy(update={"spent": spent}))
        build_report(self.folder.path)


def _figures(trial: Trial) -> str:
    """A trial in a few words: what it was measured at, and its size."""
    measured = {name: value for name, value in (trial.objectives or {}).items() if name in trial.measurements}
    parts = [f"{name} {value:.4g}" for name, value in measured.items()]
    return f"{', '.join(parts)} at {format_count(trial.params)}"
