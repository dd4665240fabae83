"""A correlation run: candidates measured by every proxy, trained for a while, and both compared."""

from __future__ import annotations

from collections.abc import Sequence

from slm_ray.config.errors import UserError
from slm_ray.records.base import RecordFile, read_lines, read_record, write_record
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import write_text
from slm_ray.records.proxies import (
    FailedCandidate,
    ProxyCost,
    ProxyMeasurements,
    ProxyReport,
    ProxyValue,
    TrainedCandidate,
)
from slm_ray.records.run import RunRecord
from slm_ray.records.search import Measurement, ShortTraining, Trial
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.runfolder import LOG_FILE, RunFolder
from slm_ray.runtime.session import ray_session
from slm_ray.search.candidates import FEWEST_CANDIDATES, FinishedSearch, SearchedTeacher
from slm_ray.search.evaluator import LATENCY_PASSES, EvaluatorSettings, measure_in_full
from slm_ray.search.registry import PROXIES
from slm_ray.search.short_training import ShortTrainer, short_config
from slm_ray.studies.proxies_config import ProxiesConfig
from slm_ray.studies.proxies_report import BEFORE, TABLE_FILE, as_csv, as_table, correlate
from slm_ray.studies.rank_correlation import RESAMPLES

CSV_FILE, TRAINING_FOLDER = "correlations.csv", "training"


class CorrelationRun:
    """One report on proxies, from its options to its folder; each phase goes on where an earlier process stopped."""

    def __init__(
        self, config: ProxiesConfig, folder: RunFolder, search: FinishedSearch, chosen: Sequence[Trial]
    ) -> None:
        self.config, self.folder, self.search, self.chosen = config, folder, search, chosen
        self.console = Console(folder.file(LOG_FILE))

    def execute(self) -> None:
        """Measure, train, correlate."""
        self.console.line(f"folder of the report: {self.folder.path}")
        with ray_session(self.config.address, usable_cpus(), self.config.storage):
            trials = [trial.trial for trial in self.chosen]
            searched = self.search.load(trials, self.config.measured, self.console, usable_cpus())
            self.folder.begin()
            measured = self._measure(searched)
            records = self._train(searched, measured)
        self._report(records, self._shared_flops(searched))

    def _measure(self, searched: SearchedTeacher) -> dict[int, dict[str, Measurement]]:
        """Every proxy of every candidate; what the search measured on all tokens is not measured again."""
        path = self.folder.file(ProxyMeasurements.FILE)
        known = {trial.trial: trial.full_measurements for trial in self.chosen}
        for record in read_lines(path, ProxyMeasurements):
            known[record.trial] |= record.measurements
        left: dict[tuple[str, ...], list[int]] = {}
        for trial, found in known.items():
            if missing := tuple(name for name in self.config.measured if name not in found):
                left.setdefault(missing, []).append(trial)
        progress = Progress(self.console, "proxies", sum(map(len, left.values())), "candidates")
        done = 0
        with RecordFile[ProxyMeasurements](path) as file:

            def on_done(trial: int, found: dict[str, Measurement]) -> None:
                nonlocal done
                rounded = {name: one.rounded() for name, one in found.items()}
                file.append(ProxyMeasurements(trial=trial, measurements=rounded))
                known[trial] |= rounded
                done += 1
                progress.update(done)

            for missing, trials in left.items():
                settings = EvaluatorSettings(
                    teacher=searched.teacher, precision=searched.precision, ids=searched.ids, proxies=missing,
                    scores=searched.scores,
                )  # fmt: skip
                measure_in_full(settings, {trial: searched.specs[trial] for trial in trials}, usable_cpus(), on_done)
        progress.finish(f"{done} candidates")
        return known

    def _train(
        self, searched: SearchedTeacher, measured: dict[int, dict[str, Measurement]]
    ) -> list[TrainedCandidate]:
        """The last record of every candidate, its training done or failed."""
        config, data, length = self.config, self.search.config.data, self.search.config.length
        options = short_config(
            searched.teacher, config.tokens, length, data=data.data, text_field=data.text_field,
            batch_size=config.sequences_of_a_step(length), seed=config.seed, distill=config.distill,
            learning_rate=config.learning_rate, eval_tokens=config.eval_tokens, engine=config.engine,
            threads=config.threads, concurrent=config.concurrent, device=config.device, storage=config.storage,
            address=config.address,
        )  # fmt: skip
        path = self.folder.file(TrainedCandidate.FILE)
        found = {record.trial: record for record in read_lines(path, TrainedCandidate)}
        left = {one.trial: one for one in self.chosen
                if one.trial not in found or found[one.trial].status != "done"}  # fmt: skip
        with RecordFile[TrainedCandidate](path) as file:

            def on_done(trial: int, trained: ShortTraining) -> None:
                found[trial] = self._record(left[trial], measured[trial], trained, searched)
                file.append(found[trial])
                self.console.line(f"trial {trial}: {trained.error or _losses(trained)}")

            trainer = ShortTrainer(
                options, searched.teacher, self.folder.file(TRAINING_FOLDER), self.console, keep_models=False
            )
            trainer.train({trial: searched.specs[trial] for trial in left}, on_done)
        return [found[trial.trial] for trial in self.chosen]

    def _record(
        self, candidate: Trial, measured: dict[str, Measurement], trained: ShortTraining, searched: SearchedTeacher
    ) -> TrainedCandidate:
        proxies = {}
        for name in self.config.proxies:
            if name in PROXIES:
                one = measured[name]
                flops = self._flops(name, one, candidate, searched)
                proxies[name] = ProxyValue(value=one.value, tokens=one.tokens, seconds=one.seconds, flops=flops)
            else:
                proxies[name] = ProxyValue(value=candidate.cost[name])
        if trained.first_loss is not None:
            tokens = self.config.eval_tokens
            flops = float(tokens * candidate.cost.flops)
            proxies[BEFORE] = ProxyValue(value=trained.first_loss, tokens=tokens, flops=flops)
        is_done = trained.error is None and trained.first_loss is not None
        return TrainedCandidate(
            trial=candidate.trial, digest=candidate.digest, cost=candidate.cost, decided=candidate.decided,
            status="done" if is_done else "failed", proxies=proxies, tokens=trained.tokens,
            error=trained.error or (None if is_done else "its held-out loss before training is not a number"),
            first_loss=trained.first_loss, loss=trained.loss, flops=trained.flops, seconds=trained.seconds,
        )  # fmt: skip

    def _flops(self, name: str, measured: Measurement, candidate: Trial, searched: SearchedTeacher) -> float:
        """What measuring one candidate computed."""
        per_token = candidate.cost.flops
        if name == "latency":
            return float(LATENCY_PASSES * measured.tokens * per_token)
        if name == "kl":  # the teacher's logits are made again from its hidden states
            teacher = searched.teacher.architecture()
            per_token += 2 * teacher.hidden_size * teacher.structure.vocab_size
        return float(measured.tokens * per_token)

    def _shared_flops(self, searched: SearchedTeacher) -> dict[str, float]:
        methods = {name: PROXIES[name].scores or "" for name in self.config.measured}
        flops = {name: searched.score_flops.get(method, 0.0) for name, method in methods.items()}
        if "kl" in flops:
            forward = flops_per_token(searched.teacher.architecture(), self.search.config.length)
            flops["kl"] = float(searched.ids.size * forward)
        return flops

    def _report(self, records: Sequence[TrainedCandidate], shared_flops: dict[str, float]) -> None:
        done = [record for record in records if record.status == "done"]
        failed = tuple(
            FailedCandidate(trial=one.trial, error=str(one.error)) for one in records if one.status != "done"
        )
        if len(done) < FEWEST_CANDIDATES:
            raise UserError(
                f"a rank correlation needs at least {FEWEST_CANDIDATES} trained candidates, and {len(failed)} of "
                f"{len(records)} trainings failed, the first with: {failed[0].error}; give more --candidates or other "
                "options of the training"
            )
        report = ProxyReport(
            command=read_record(self.folder.path, RunRecord).command, run=str(self.config.run), candidates=len(done),
            tokens=done[0].tokens, eval_tokens=self.config.eval_tokens, seed=self.config.seed, resamples=RESAMPLES,
            failed=failed, proxies=correlate(done, self.config.proxies, shared_flops, self.config.seed),
            training_cost=ProxyCost(
                flops_per_candidate=sum(one.flops for one in done) / len(done),
                seconds_per_candidate=round(sum(one.seconds for one in done) / len(done), 3),
            ),
        )  # fmt: skip
        write_text(self.folder.file(CSV_FILE), as_csv(report))
        write_text(self.folder.file(TABLE_FILE), "\n".join(as_table(report)) + "\n")
        write_record(self.folder.path, report)  # the last: it says that the run is finished


def _losses(trained: ShortTraining) -> str:
    return f"loss {trained.first_loss:.4f} to {trained.loss:.4f}" if trained.first_loss is not None else "no loss"
