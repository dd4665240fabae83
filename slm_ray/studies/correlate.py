"""A correlation run: candidates measured by every proxy, trained for a while, and both compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import write_json, write_text
from slm_ray.records.jsonl import RecordWriter, read_records
from slm_ray.records.search import Measurement
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.runfolder import LOG_FILE, RunFolder
from slm_ray.runtime.session import ray_session
from slm_ray.search.correlation import RESAMPLES
from slm_ray.search.evaluator import EvaluatorSettings
from slm_ray.search.latency import FORWARD_PASSES
from slm_ray.search.measurement import measured_on_all
from slm_ray.search.measuring import Measurements, measure_in_full
from slm_ray.search.proxy_candidates import FEWEST_CANDIDATES, SearchedTeacher
from slm_ray.search.registry import PROXIES
from slm_ray.search.short_training import ShortTrainer, short_config
from slm_ray.search.trained import Trained
from slm_ray.studies.proxies_config import ProxiesConfig
from slm_ray.studies.proxies_report import BEFORE, as_csv, as_table, correlate

MEASUREMENTS_FILE, CANDIDATES_FILE = "measurements.jsonl", "candidates.jsonl"
REPORT_FILE, CSV_FILE, TABLE_FILE = "correlations.json", "correlations.csv", "table.txt"
TRAINING_FOLDER = "training"
Load = Callable[[list[int], tuple[str, ...], Console], SearchedTeacher]


@dataclasses.dataclass(frozen=True)
class SearchFacts:
    """The options of a search that its candidates are measured and trained with."""

    sequence_length: int
    data: str
    text_field: str


class CorrelationRun:
    """One report on proxies, from its options to its folder; each phase goes on where an earlier process stopped."""

    def __init__(
        self, config: ProxiesConfig, folder: RunFolder, command: str, chosen: list[dict[str, Any]], load: Load,
        search: SearchFacts,
    ) -> None:  # fmt: skip
        """Prepare a run in an open folder.

        Args:
            config: The options.
            folder: Where everything goes.
            command: The command line, for the record.
            chosen: Trials of the search, the best first.
            load: Makes sub-networks of trials, and loads what proxies need; Ray runs by then.
            search: The search's options.
        """
        self.config, self.folder, self.command = config, folder, command
        self.chosen, self._load, self.search = chosen, load, search
        self.console = Console(folder.file(LOG_FILE))
        self.names = config.names()

    def execute(self) -> None:
        """Measure, train, correlate; print the table.

        Raises:
            UserError: Something the user can fix went wrong; what was finished is kept.
        """
        self.console.line(f"folder of the report: {self.folder.path}")
        with ray_session(self.config.address, usable_cpus()):
            proxies = tuple(name for name in self.names if name in PROXIES)
            searched = self._load([record["trial"] for record in self.chosen], proxies, self.console)
            measured = self._measure(searched, proxies)
            records = self._train(searched, measured)
        self._report(records, self._shared_flops(searched))

    def _measure(self, searched: SearchedTeacher, proxies: tuple[str, ...]) -> dict[int, Measurements]:
        """Every proxy of every candidate; what the search measured on all tokens is not measured again."""
        known: dict[int, Measurements] = {record["trial"]: measured_on_all(record) for record in self.chosen}
        for record in read_records(self.folder.file(MEASUREMENTS_FILE)):
            entries = record["measurements"].items()
            known[record["trial"]] |= {name: Measurement.model_validate(entry) for name, entry in entries}
        left: dict[tuple[str, ...], list[int]] = {}
        for trial, found in known.items():
            missing = tuple(name for name in proxies if name not in found)
            if missing:
                left.setdefault(missing, []).append(trial)
        progress = Progress(self.console, "proxies", sum(map(len, left.values())), "candidates")
        done = 0
        with RecordWriter(self.folder.file(MEASUREMENTS_FILE)) as writer:

            def on_done(trial: int, found: Measurements) -> None:
                nonlocal done
                rows = {name: one.rounded().to_json() for name, one in found.items()}
                writer.append({"trial": trial, "measurements": rows})
                known[trial] |= found
                done += 1
                progress.update(done)

            for missing, trials in left.items():
                settings = EvaluatorSettings(
                    teacher=searched.teacher, precision=searched.precision, ids=searched.ids, proxies=missing,
                    stage_tokens=(), confidence=0.9, threads=1, scores=searched.scores,
                )  # fmt: skip
                measure_in_full(settings, {trial: searched.specs[trial] for trial in trials}, usable_cpus(), on_done)
        progress.finish(f"{done} candidates")
        return known

    def _train(self, searched: SearchedTeacher, measured: dict[int, Measurements]) -> list[dict[str, Any]]:
        """The last record of every candidate, its training done or failed."""
        config, length = self.config, self.search.sequence_length
        options = short_config(
            searched.teacher, config.tokens, length, data=self.search.data, text_field=self.search.text_field,
            batch_size=config.sequences_of_a_step(length), seed=config.seed, distill=config.distill,
            learning_rate=config.learning_rate, eval_tokens=config.eval_tokens, engine=config.engine,
            threads=config.threads, concurrent=config.concurrent, device=config.device,
        )  # fmt: skip
        path = self.folder.file(CANDIDATES_FILE)
        found = {record["trial"]: record for record in read_records(path)}
        left = [record for record in self.chosen if found.get(record["trial"], {}).get("status") != "done"]
        by_trial = {record["trial"]: record for record in left}
        with RecordWriter(path) as writer:

            def on_done(trial: int, trained: Trained) -> None:
                record = self._record(by_trial[trial], measured[trial], trained, searched)
                writer.append(record)
                found[trial] = record
                self.console.line(f"trial {trial}: {trained.error or _losses(trained)}")

            trainer = ShortTrainer(
                options, searched.teacher, self.folder.file(TRAINING_FOLDER), self.console, keep_models=False
            )
            trainer.train({trial: searched.specs[trial] for trial in by_trial}, on_done)
        return [found[record["trial"]] for record in self.chosen]

    def _record(
        self, candidate: dict[str, Any], measured: Measurements, trained: Trained, searched: SearchedTeacher
    ) -> dict[str, Any]:
        """A line of candidates.jsonl."""
        cost = candidate["cost"]
        proxies: dict[str, dict[str, Any]] = {}
        for name in self.names:
            if name in PROXIES:
                one = measured[name]
                flops = self._flops(name, one, candidate, searched)
                proxies[name] = {"value": one.value, "tokens": one.tokens, "seconds": one.seconds, "flops": flops}
            else:
                proxies[name] = {"value": cost[name], "tokens": 0, "seconds": 0.0, "flops": 0.0}
        if trained.first_loss is not None:
            tokens = self.config.eval_tokens
            proxies[BEFORE] = {
                "value": trained.first_loss, "tokens": tokens, "seconds": 0.0, "flops": float(tokens * cost["flops"]),
            }  # fmt: skip
        is_done = trained.error is None and trained.first_loss is not None
        error = trained.error or (None if is_done else "its held-out loss before training is no number")
        return {
            "trial": candidate["trial"], "digest": candidate["digest"], "cost": cost, "decided": candidate["decided"],
            "status": "done" if is_done else "failed", "error": error, "proxies": proxies, "tokens": trained.tokens,
            "first_loss": trained.first_loss, "loss": trained.loss, "flops": trained.flops, "seconds": trained.seconds,
        }  # fmt: skip

    def _flops(self, name: str, measured: Measurement, candidate: dict[str, Any], searched: SearchedTeacher) -> float:
        """What measuring one candidate computed."""
        per_token = candidate["cost"]["flops"]
        if name == "latency":
            return float(FORWARD_PASSES * measured.tokens * per_token)
        if name == "kl":  # the teacher's logits are made again from its hidden states
            teacher = searched.teacher.architecture()
            per_token += 2 * teacher.hidden_size * teacher.structure.vocab_size
        return float(measured.tokens * per_token)

    def _shared_flops(self, searched: SearchedTeacher) -> dict[str, float]:
        methods = {name: PROXIES[name].scores or "" for name in self.names if name in PROXIES}
        flops = {name: searched.score_flops.get(method, 0.0) for name, method in methods.items()}
        if "kl" in flops:
            forward = flops_per_token(searched.teacher.architecture(), self.search.sequence_length)
            flops["kl"] = float(searched.ids.size * forward)
        return flops

    def _report(self, records: list[dict[str, Any]], shared_flops: dict[str, float]) -> None:
        done = [record for record in records if record["status"] == "done"]
        failed = [{"trial": one["trial"], "error": one["error"]} for one in records if one["status"] != "done"]
        if len(done) < FEWEST_CANDIDATES:
            raise UserError(
                f"a rank correlation needs at least {FEWEST_CANDIDATES} trained candidates, and {len(failed)} of "
                f"{len(records)} trainings failed, the first with: {failed[0]['error']}; what was finished is kept: "
                f"continue with --resume {self.folder.path}"
            )
        report = {
            "command": self.command, "run": str(self.config.run), "candidates": len(done),
            "tokens": done[0]["tokens"], "eval_tokens": self.config.eval_tokens, "seed": self.config.seed,
            "resamples": RESAMPLES, "failed": failed,
            "proxies": correlate(done, self.names, shared_flops, self.config.seed),
            "training_cost": {
                "flops_per_candidate": sum(one["flops"] for one in done) / len(done),
                "seconds_per_candidate": round(sum(one["seconds"] for one in done) / len(done), 3),
            },
        }  # fmt: skip
        lines = as_table(report)
        write_text(self.folder.file(CSV_FILE), as_csv(report))
        write_text(self.folder.file(TABLE_FILE), "\n".join(lines) + "\n")
        write_json(self.folder.file(REPORT_FILE), report)  # the last: it says that the run is finished
        print("\n".join(lines))


def _losses(trained: Trained) -> str:
    return f"loss {trained.first_loss:.4f} to {trained.loss:.4f}" if trained.first_loss is not None else "no loss"
