"""A finished search opened again: its candidates as sub-networks, with what proxies need to measure them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.options import build_config
from slm_ray.models.scores import UnitScores
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import read_json
from slm_ray.records.jsonl import read_records
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.runfolder import CONFIG_FILE, TRIALS_FILE
from slm_ray.search.config import SearchConfig
from slm_ray.search.inputs import INPUTS_FILE, SearchInputs, prepare_inputs, with_kept_precision
from slm_ray.search.proxy_candidates import SearchedTeacher
from slm_ray.search.rank import ACTIVATION_SEQUENCES, bind_genomes, rank_units, scores_by_method
from slm_ray.search.registry import PROXIES

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class FinishedSearch:
    """The records of a finished search.

    Attributes:
        path: Its folder.
        config: Its options.
        records: Its trials.
        front: Trials on its front, the best first.
        teacher_flops: FLOPs per token of its teacher's forward pass.
    """

    path: Path
    config: SearchConfig
    records: list[dict[str, Any]]
    front: tuple[int, ...]
    teacher_flops: int

    @classmethod
    def open(cls, path: Path) -> FinishedSearch:
        """Read a run folder; nothing is loaded or computed.

        Raises:
            UserError: It holds no search, an unfinished one, or no trials.
        """
        if not (path / CONFIG_FILE).is_file() or "space" not in (saved := read_json(path / CONFIG_FILE)):
            raise UserError(f"{path} holds no search: give the folder of a finished one (python -m slm_ray.search)")
        saved.pop("command", None)
        config = build_config(SearchConfig, saved, source=str(path / CONFIG_FILE))
        records = read_records(path / TRIALS_FILE)
        if not records:
            raise UserError(f"{path} has no trials in {TRIALS_FILE}: give the folder of a finished search")
        if not (path / RESULT_FILE).is_file():
            raise UserError(f"the search in {path} is not finished: python -m slm_ray.search --resume {path}")
        result = read_json(path / RESULT_FILE)
        front = tuple(entry["trial"] for entry in result["front"])
        return cls(path, config, records, front, result["teacher"]["cost"]["flops"])

    def load(self, trials: list[int], proxies: tuple[str, ...], console: Console) -> SearchedTeacher:
        """Load what the search worked with; Ray must run.

        Args:
            trials: The candidates that are wanted as sub-networks.
            proxies: What they are to be measured with.
            console: Where to say how far it is.

        Raises:
            UserError: The teacher, the text or the space is no longer what it was.
        """
        inputs = prepare_inputs(with_kept_precision(self.config, self.path), console)
        self._check_digests(inputs)
        progress = Progress(console, "unit importance", self.config.importance_steps, "steps")
        stack = bind_genomes(self.config, inputs, rank_units(self.config, inputs, progress))
        genes = {record["trial"]: record["genes"] for record in self.records}
        specs = {trial: stack.decode(stack.from_text(genes[trial])) for trial in trials}
        methods = {PROXIES[name].scores or "" for name in proxies if name in PROXIES} - {""}
        scores: dict[str, UnitScores] = scores_by_method(self.config, inputs, methods, progress)
        flops = {method: self._score_flops(method, inputs) for method in methods}
        return SearchedTeacher(inputs.teacher, inputs.precision, inputs.calibration.ids, specs, scores, flops)

    def _check_digests(self, inputs: SearchInputs) -> None:
        before, now = read_json(self.path / INPUTS_FILE), inputs.digests()
        for name in sorted(now):
            if before.get(name) != now[name]:
                raise UserError(
                    f"the {name.replace('_', ' ')} of {self.path} was {before.get(name)} and is {now[name]} now, so "
                    "its candidates cannot be made again: restore it, or search anew"
                )

    def _score_flops(self, method: str, inputs: SearchInputs) -> float:
        """What scores of the whole teacher cost: none for its weights alone, else passes over a few sequences."""
        if method == "magnitude":
            return 0.0
        length = self.config.sequence_length
        forward = flops_per_token(inputs.architecture, length)
        if method == "activation":
            return float(min(ACTIVATION_SEQUENCES, len(inputs.train.ids)) * length * forward)
        # A forward pass, and a backward pass for activations only, which costs as much.
        return float(2 * self.config.importance_tokens * forward)
