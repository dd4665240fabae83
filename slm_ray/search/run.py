"""A search from its options to its run folder, phase by phase; from the first scores on, its best model is there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from slm_ray.config.base import flatten
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count, format_seconds
from slm_ray.data.shards import TokenShards
from slm_ray.models.precision import DTYPES, measure_precision
from slm_ray.models.teacher_sizes import look_up_teacher
from slm_ray.records.base import find_record, read_record, write_record
from slm_ray.records.cost import num_params
from slm_ray.records.run import RunRecord, keep_unchanged
from slm_ray.records.search import (
    Baseline,
    BudgetRange,
    FrontMember,
    ModelsSpent,
    Phases,
    Reconstruction,
    SearchInputsRecord,
    SearchResult,
    ShortTraining,
    Spent,
    Trial,
)
from slm_ray.report.search_report import build_report
from slm_ray.report.tracked import send_results
from slm_ray.runtime.forecast import Schedule
from slm_ray.runtime.hardware import device_of
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.runfolder import LOG_FILE, RunFolder
from slm_ray.runtime.session import ray_session
from slm_ray.runtime.trackers import NoTracker, Tracker, group_of, make_tracker
from slm_ray.search import estimates, spending
from slm_ray.search.algorithms import make_algorithm, seed_genes
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import EvaluatorSettings, share_of
from slm_ray.search.inputs import (
    SearchInputs,
    prepare_inputs,
    search_workers,
    space_of,
    with_fit_text,
    with_general_text,
)
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
    WinnerFolders,
    baselines_at,
    front_members,
    pick_finalists,
    pick_spread,
    pick_trained,
    spec_of,
    teacher_model,
    write_cards,
)

T = TypeVar("T")
FINALISTS_FOLDER = "finalists"
_HOPELESS = 50.0  # a baseline so many times worse than the winner is measured no further


class SearchRun:
    """One search. Its phases are run in order by :meth:`execute`; each reads what the earlier ones left."""

    def __init__(self, config: SearchConfig, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self.command = read_record(folder.path, RunRecord).command
        self.console = Console(folder.file(LOG_FILE))
        self.phases = PhaseRecord(folder.path)
        self.console.on_progress = self.phases.note
        self.workers = search_workers(config)
        self.threads = config.machine.threads * max(1, self.workers)  # of all workers together
        self.tracker: Tracker = NoTracker()
        self.winners = WinnerFolders(folder.path, config.winners.dtype, self.command)
        self.schedule = Schedule(estimates.phases_of(config))

    def execute(self) -> None:
        """Run every phase and leave a finished run folder.

        Raises:
            KeyboardInterrupt: The user stopped it; the best model so far and a report are there.
        """
        self.console.line(f"run folder: {self.folder.path}")
        on_cluster = self.config.machine.address is not None
        try:
            precision = self._announce()
            inputs = self._phase("teacher and text", "inputs", lambda: self._inputs(precision))
            self.folder.begin()
            with self._ray(on_cluster):
                ranking = self._phase("unit scores", "importance", lambda: self._rank(inputs))
                plan = self._plan(inputs, ranking)
                self._export_first(inputs, plan)
                is_done = plan.journal.resumed >= self.config.plan.trials and not self.config.winners.finalists
                with self._ray(not on_cluster and not is_done):
                    inputs = self._phase("search", "search", lambda: self._search(inputs, ranking, plan))
                    trained = self._trained(inputs, plan)
                front = self._phase("winners", "export", lambda: self._choose(inputs, plan, trained))
                fits: ModelsSpent | None = None
                if self.config.reconstruction.reconstruct != "none":
                    fit = lambda: self._reconstruct(inputs, plan, front)  # noqa: E731
                    front, fits = self._phase("reconstruction", "reconstruction", fit)
                spent = lambda: spending.spent_on(self.phases, plan, trained, fits, self.workers)  # noqa: E731
                measure = lambda: self._measure(inputs, ranking, plan, front, spent)  # noqa: E731
                result = self._phase("held-out text", "final", measure)
            self._phase("report", "report", lambda: self._report(result))
            send_results(self.tracker, self.folder.path)
        except KeyboardInterrupt:
            self._stopped()
            raise
        except BaseException:
            if not self.folder.begun:
                for record in (Phases, SearchInputsRecord):
                    self.folder.file(record.FILE).unlink(missing_ok=True)
            raise
        finally:
            self.tracker.finish()

    def _ray(self, is_wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Ray, where anything is computed in other processes."""
        machine = self.config.machine
        if not is_wanted or not (self.workers or self.config.winners.finalists):
            return contextlib.nullcontext()
        return ray_session(machine.address, self.threads, machine.storage)

    def _announce(self) -> str | None:
        """Say what will be done and how long it will take here; gives what is computed in, where that is known."""
        config, known = self.config, look_up_teacher(self.config.space.teacher)
        if known.architecture is None:
            return None
        before = find_record(self.folder.path, SearchInputsRecord)
        device = device_of(config.machine.device, config.machine.address)
        precision = before.precision if before else measure_precision(config.measure.precision, device)
        space = space_of(config)
        sizes = estimates.search_sizes(config, space, known.architecture)
        forecast = estimates.forecast_search(config, space, sizes, precision, known.dtype)
        self.schedule.expect(forecast, estimates.machine_rate(config, precision))
        wanted, fits = config.plan, config.reconstruction
        fitted = "" if fits.reconstruct == "none" else f", weights fitted on {fits.reconstruct_tokens:,} tokens"
        self.console.line(
            f"plan ({config.effort.effort}): scores from {config.scores.tokens:,} tokens, {wanted.trials} candidates, "
            f"up to {config.winners.winners} winners{fitted}: {format_count(forecast.flops)} FLOPs, about "
            f"{format_seconds(self.schedule.left)} on this machine"
        )
        return precision

    def _phase(self, label: str, name: str, phase: Callable[[], T]) -> T:
        number = self.schedule.begin(label)
        self.console.later = lambda: self.schedule.after
        self.console.line(f"{number} {label} …")
        before, threads = self.phases.seconds().get(name, 0.0), torch.get_num_threads()
        with self.phases.phase(name):
            value = phase()
        torch.set_num_threads(threads)
        took = self.phases.seconds()[name] - before
        self.schedule.end(took)
        left = f" · all done in {format_seconds(self.schedule.left)}" if self.schedule.left else ""
        self.console.line(f"{number} {label}: {format_seconds(took)}{left}")
        return value

    def _stopped(self) -> None:
        """After Ctrl-C: a report, and a sentence on what is there and what was left out."""
        lineage = self.winners.lineage(0)
        if lineage is None:
            return
        fitted = lineage.reconstruction is not None and lineage.reconstruction.kept
        state = "with fitted weights" if fitted else "as pruned"
        build_report(self.folder.path)
        self.console.line(
            f"stopped: {self.winners.folder(0)} is the best model so far, {state}; left out: "
            f"{', '.join(self.schedule.undone)}"
        )

    def _inputs(self, precision: str | None) -> SearchInputs:
        before = find_record(self.folder.path, SearchInputsRecord)
        inputs = prepare_inputs(self.config, self.console, before.precision if before else precision)
        if precision is None:
            self._announce()
        keep_unchanged(self.folder.path, inputs.record())
        return inputs

    def _around(self, inputs: SearchInputs) -> tuple[SearchConfig, int]:
        """How the phases around the search compute: options, and processes; 0: this one, with all of the threads.

        A few workers take longer to start than this process takes for all.
        """
        machine = self.config.machine
        if machine.address and not machine.workers:
            import ray

            fit = share_of(inputs.device, machine.threads, inputs.architecture).how_many_fit(ray.cluster_resources())
            return self.config, max(1, fit)
        if machine.address:
            return self.config, self.workers
        return self.config.replace(threads=self.threads), 0

    def _rank(self, inputs: SearchInputs) -> Ranking:
        config, workers = self._around(inputs)
        progress = Progress(self.console, "unit scores", config.scores.importance_steps, "steps")
        ranking = rank_units(config, inputs, progress, workers)
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

    def _search(self, inputs: SearchInputs, ranking: Ranking, plan: SearchPlan) -> SearchInputs:
        """Measure candidates; gives the inputs with the text that they were measured on."""
        inputs = with_general_text(self.config, inputs, self.console)
        spending.pay_teacher_text(self.phases, inputs, inputs.written_tokens)
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
            written=inputs.vocabularies.written(inputs.calibration.ids),
        )  # fmt: skip
        if not self.workers or plan.journal.resumed >= config.plan.trials:
            run_plan_here(plan, settings)
        else:
            from slm_ray.search.tune_workers import run_plan, scratch_folder  # Ray: imported with its settings made

            # On a cluster trials take all CPUs, those of machines that join too, unless --workers limits them.
            grows = machine.address is not None and machine.workers is None
            most = max(self.workers, config.plan.population) if grows else self.workers
            run_plan(plan, settings, most, scratch_folder(self.folder.path), grows=machine.address is not None)
        plan.journal.close()
        tracking.update()
        return inputs

    def _trained(self, inputs: SearchInputs, plan: SearchPlan) -> dict[int, ShortTraining]:
        """What short training gave the finalists, by position in the front."""
        if not self.config.winners.finalists:
            return {}
        train = lambda: self._train_finalists(inputs, plan)  # noqa: E731
        return self._phase("finalists", "finalists", train)

    def _train_finalists(self, inputs: SearchInputs, plan: SearchPlan) -> dict[int, ShortTraining]:
        """Train finalists in RUN/finalists/TRIAL."""
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

        assert isinstance(inputs.calibration, TokenShards)  # of one vocabulary, where there are finalists
        trainer = ShortTrainer(
            options, inputs.teacher, self.folder.file(FINALISTS_FOLDER), self.console, keep_models=True,
            measured_on=inputs.calibration,  # held-out text takes no part in any choice
        )  # fmt: skip
        found = trainer.train({front[at].trial: spec_of(plan.stack, front[at]) for at in positions}, on_done)
        return {at: found[front[at].trial] for at in positions}

    # Winners: the ranking's own choice at once, the search's in its place, fitted weights in theirs

    def _export_first(self, inputs: SearchInputs, plan: SearchPlan) -> None:
        """The ranking's own choice at the largest size, before anything is measured."""
        if self.winners.folder(0).exists():
            return
        genes = _first_choice(plan)
        spec = plan.stack.decode(plan.stack.from_text(genes))
        self.winners.put(inputs, 0, spec, genes, None)
        size = format_count(num_params(spec.architecture_in(inputs.architecture)))
        self.console.line(f"{self.winners.folder(0)}: {size} parameters by unit scores alone, ready to load")

    def _choose(
        self, inputs: SearchInputs, plan: SearchPlan, trained: dict[int, ShortTraining]
    ) -> list[Chosen[FrontMember]]:
        """The front with its winners, which are extracted."""
        front, count = plan.measured_front(), self.config.winners.winners
        if not front:
            raise UserError(f"no candidate was measured to the end: see the errors in {self.folder.file(Trial.FILE)}")
        costs = [trial.cost[inputs.budget.quantity] for trial in front]
        winners = pick_trained(costs, trained, count) if trained else pick_spread(costs, count)
        first, best = plan.journal.find(_first_choice(plan)), front[winners[0]]
        progress = Progress(self.console, "winners", len(winners), "models")
        for number, position in enumerate(winners):
            trial = front[position]
            self.winners.put(inputs, number, spec_of(plan.stack, trial), trial.genes, trial.trial)
            progress.update(number + 1)
        gain = f"; by unit scores alone {_figures(first)}" if first and first.trial != best.trial else ""
        self.console.line(f"{self.winners.folder(0)}: {_figures(best)}{gain}")
        return front_members(plan.stack, front, winners, trained)

    def _reconstruct(
        self, inputs: SearchInputs, plan: SearchPlan, front: list[Chosen[FrontMember]]
    ) -> tuple[list[Chosen[FrontMember]], ModelsSpent]:
        """Fit the weights of winners, or of the whole front; winners' folders are replaced as they are done."""
        before, inputs = inputs.written_tokens, with_fit_text(self.config, inputs, self.console)
        spending.pay_teacher_text(self.phases, inputs, inputs.written_tokens - before)
        wanted = self.config.reconstruction.reconstruct == "all"
        chosen = {one.record.trial: one for one in front if wanted or one.record.winner is not None}
        numbers = {trial: one.record.winner for trial, one in chosen.items() if one.record.winner is not None}
        trials = {trial.trial: trial for trial in plan.journal}
        members = [
            Member(
                trial, one.spec, one.record.params, trial in numbers,
                trials[trial].full_measurements.get("perplexity"),
            )
            for trial, one in chosen.items()
        ]  # fmt: skip
        progress = Progress(self.console, "reconstruction", len(members), "models")

        def on_member(trial: int, record: Reconstruction) -> None:
            progress.update(progress.done)
            name = str(self.winners.folder(numbers[trial])) if trial in numbers else f"trial {trial}"
            self.console.line(f"{name}: {describe_reconstruction(record)}")

        def save(trial: int, student: object, record: Reconstruction) -> None:
            self.winners.put(inputs, numbers[trial], chosen[trial].spec, trials[trial].genes, trial, student, record)

        def is_saved(trial: int) -> bool:
            there = self.winners.lineage(numbers[trial])
            return there is not None and there.genes == trials[trial].genes and there.reconstruction is not None

        work = Reconstructor(
            inputs, self.folder.file(RECONSTRUCTION_FOLDER), DTYPES[self.winners.dtype(inputs)],
            on_member=on_member, on_part=progress.update,
        )  # fmt: skip
        torch.set_num_threads(self.threads)
        found = work.run(members, save, is_saved)
        fitted = [
            Chosen(one.spec, one.record.model_copy(update={"reconstruction": found.get(one.record.trial)}))
            for one in front
        ]
        return fitted, work.spent(members)

    def _measure(
        self, inputs: SearchInputs, ranking: Ranking, plan: SearchPlan, front: list[Chosen[FrontMember]],
        spent: Callable[[], Spent],
    ) -> SearchResult:  # fmt: skip
        """The result, with perplexities on text that decided nothing."""
        length, quantity = self.config.length, inputs.budget.quantity
        best = next(one.record for one in front if one.record.winner == 0)
        genome = plan.stack.of(plan.stack.from_text(next(one.genes for one in plan.journal if one.trial == best.trial)))
        baselines = baselines_at(inputs, genome, ranking, best.cost[quantity], length, self.config.plan.seed)
        work = TextMeasurement(*self._around(inputs), inputs, self.phases, self.console)
        teacher, *members = work.measure(HELD_OUT, inputs.held_out.ids, [teacher_model(inputs, length), *front])
        limit = _HOPELESS * (best.calibration_perplexity or torch.inf)
        glance = inputs.held_out.ids[: max(1, estimates.GLANCE_TOKENS // length)]
        glances = work.measure(HELD_OUT, glance, baselines) if len(glance) < inputs.held_out.num_sequences else []
        hopeless: dict[str, Baseline] = {one.name: one for one in glances if (one.perplexity or 0) > limit}
        close = [one for one in baselines if one.record.name not in hopeless]
        measured = {one.name: one for one in work.measure(HELD_OUT, inputs.held_out.ids, close)} | hopeless
        if inputs.other is not None:
            places = [at for at, one in enumerate(members) if one.winner is not None]
            chosen = [Chosen(front[at].spec, members[at]) for at in places]
            whole = Chosen(teacher_model(inputs, length).spec, teacher)
            teacher, *more = work.measure(OTHER_TEXT, inputs.other.ids, [whole, *chosen])
            for place, record in zip(places, more, strict=True):
                members[place] = record
        return SearchResult(
            command=self.command, objectives=plan.objectives, teacher=teacher, corpus=inputs.corpus_record(),
            budget=BudgetRange.model_validate(
                {"quantity": quantity, "low": inputs.budget.low, "high": inputs.budget.high}
            ),
            precision=inputs.precision, front=tuple(members),
            baselines=tuple(measured[one.record.name] for one in baselines),
            hypervolume=tuple(plan.history), spent=spent(), winners=self.winners.records(inputs, members),
        )  # fmt: skip

    def _report(self, result: SearchResult) -> None:
        write_cards(self.folder.path, result, flatten(self.config))
        spent = result.spent.model_copy(update={"seconds": self.phases.seconds()})
        write_record(self.folder.path, result.model_copy(update={"spent": spent}))
        build_report(self.folder.path)


def _first_choice(plan: SearchPlan) -> str:
    """The genes that the ranking alone chooses at the largest size."""
    return plan.stack.to_text(seed_genes(plan.stack, 1)[0])


def _figures(trial: Trial) -> str:
    """A trial in a few words: what it was measured at, and its size."""
    measured = {name: value for name, value in (trial.objectives or {}).items() if name in trial.measurements}
    parts = [f"{name} {value:.4g}" for name, value in measured.items()]
    return f"{', '.join(parts)} at {format_count(trial.params)}"
