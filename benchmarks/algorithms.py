"""Ways to search at equal cost on one teacher: the hypervolume that each reaches, over FLOPs and over seconds.

python benchmarks/algorithms.py --out FOLDER --trials 40 --ways plain,nsga2,screen
python benchmarks/algorithms.py --out FOLDER --table

Each way runs in this process on one thread, so that seconds are those of its processor and other work on the machine
changes them little. All measure candidates on the same calibration tokens; only candidates measured on all of them
count. Learned scores are computed once, and charged in full to every way that uses them. ``plain`` is NSGA-II as it
would be without this project: units in activation order, a first population drawn at random, everything measured in
full, nothing learned.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slm_ray.config.base import flatten
from slm_ray.config.errors import UserError
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import cache_folder, read_json, write_json
from slm_ray.records.subnet import full_subnet
from slm_ray.runtime.progress import Console, Progress
from slm_ray.search.algorithms import Algorithm, GeneticAlgorithm, make_algorithm
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import Evaluator, EvaluatorSettings
from slm_ray.search.inputs import SearchInputs, prepare_inputs
from slm_ray.search.journal import Journal
from slm_ray.search.pareto import hypervolume
from slm_ray.search.plan import SearchPlan
from slm_ray.search.stack import GenomeStack
from slm_ray.search.tasks import Idle
from slm_ray.search.unit_scores import ACTIVATION_SEQUENCES, bind_genomes, rank_units

PLAIN, SCREEN = "plain", "screen"
WAYS = (PLAIN, "nsga2", SCREEN)
SCREEN_FACTOR = 4


def random_population(stack: GenomeStack, population: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Different candidates drawn at random; fewer where the space has no more."""
    drawn: dict[bytes, NDArray[np.int64]] = {}
    for _ in range(50 * population):
        genes = stack.random(rng)
        drawn.setdefault(genes.tobytes(), genes)
        if len(drawn) == population:
            break
    return list(drawn.values())


@dataclass
class Clock:
    """What was spent so far: seconds of this process's processors, and FLOPs."""

    seconds: float = 0.0
    flops: float = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count the seconds of a block."""
        start = time.process_time()
        yield
        self.seconds += time.process_time() - start


@dataclass
class Course:
    """How a search went.

    Attributes:
        way: Its name.
        prepared: What was spent before the first candidate.
        events: For every candidate, what was spent when it was done, and its loss and cost; None for a loss that was
            not measured on all tokens.
    """

    way: str
    prepared: dict[str, float]
    events: list[dict[str, float | None]] = field(default_factory=list)


def own_cache(out: Path) -> None:
    """Compute scores anew, but take teachers and tokens from the user's cache."""
    users, own = cache_folder(), (out / "cache").resolve()
    own.mkdir(parents=True, exist_ok=True)
    for name in ("bundled", "teachers", "tokens", "corpora"):
        (users / name).mkdir(parents=True, exist_ok=True)
        if not (own / name).exists():
            (own / name).symlink_to(users / name)
    os.environ["SLM_RAY_CACHE"] = str(own)


def config_of(base: SearchConfig, way: str) -> SearchConfig:
    """The options of one way."""
    if way == PLAIN:
        return base.replace(order="activation", stages="none", algorithm="nsga2", screen=1)
    if way == SCREEN:
        return base.replace(algorithm="nsga2", screen=SCREEN_FACTOR)
    return base.replace(algorithm=way, screen=1)


def _once(path: Path, work: Callable[[], float]) -> dict[str, float]:
    """What some preparation costs: measured when it is first done, read afterwards; ``work`` returns its FLOPs."""
    clock = Clock()
    with clock.running():
        flops = work()
    if not path.is_file():
        write_json(path, {"seconds": clock.seconds, "flops": flops})
    return dict(read_json(path))


def run_way(base: SearchConfig, way: str, out: Path, console: Console) -> Course:
    """Search one way.

    Args:
        base: Options that all ways share.
        way: One of ``WAYS``.
        out: Where the costs of preparations are kept.
        console: Where to say how far it is.
    """
    config = config_of(base, way)
    inputs = prepare_inputs(config, console)
    spent = Clock()

    def charge(name: str, work: Callable[[], float]) -> None:
        cost = _once(out / f"prepared-{name}.json", work)
        spent.seconds += cost["seconds"]
        spent.flops += cost["flops"]

    found: dict[str, Any] = {}

    def rank() -> float:
        steps = config.scores.importance_steps
        found["ranking"] = rank_units(config, inputs, Progress(console, "unit importance", steps, "steps"), 0)
        teacher = flops_per_token(inputs.architecture, config.length)
        if way == PLAIN:
            return float(min(ACTIVATION_SEQUENCES, len(inputs.train.ids)) * config.length * teacher)
        return 2.0 * config.scores.tokens * teacher

    charge("activation" if way == PLAIN else "scores", rank)
    stack = bind_genomes(config, inputs, found["ranking"])
    prepared = dataclasses.asdict(spent)
    with spent.running():
        algorithm = algorithm_of(config, way, stack)
    return _follow(config, way, inputs, stack, algorithm, spent, prepared, console)


def algorithm_of(config: SearchConfig, way: str, stack: GenomeStack) -> Algorithm:
    """What proposes candidates."""
    asked = config.plan
    objectives, population, seed = asked.objective_names, asked.population, asked.seed
    if way == PLAIN:
        first = random_population(stack, population, np.random.default_rng(seed))
        return GeneticAlgorithm("nsga2", stack, seed, population, len(objectives), first=first)
    return make_algorithm(asked.algorithm, stack, objectives, population, seed, asked.screen_factor)


def _follow(
    config: SearchConfig, way: str, inputs: SearchInputs, stack: GenomeStack, algorithm: Algorithm, spent: Clock,
    prepared: dict[str, float], console: Console,
) -> Course:  # fmt: skip
    """Measure what the algorithm asks for, one candidate after the other."""
    course = Course(way, prepared)
    evaluator = Evaluator(EvaluatorSettings(
        teacher=inputs.teacher, precision=inputs.precision, ids=inputs.calibration.ids,
        stage_tokens=config.measure.stage_tokens, confidence=config.measure.confidence,
        threads=config.machine.threads,
    ))  # fmt: skip
    progress = Progress(console, way, config.plan.trials, "trials")
    with tempfile.TemporaryDirectory() as scratch:
        plan = SearchPlan(stack, algorithm, config.plan.objective_names, Journal(Path(scratch) / "trials.jsonl"),
                          config.plan.trials)  # fmt: skip
        while True:
            with spent.running():
                job = plan.next()
                if isinstance(job, Idle):
                    break
                outcome = evaluator.evaluate(stack.decode(stack.from_text(job.genes)), job.rival)
                plan.finish(job.index, outcome.rounded())
            record = plan.journal[-1]
            measured = record.measurements["perplexity"]
            spent.flops += float(measured.tokens) * record.cost.flops
            course.events.append({
                "seconds": spent.seconds, "flops": spent.flops, "cost": record.cost[inputs.budget.quantity],
                "loss": math.log(measured.value) if record.is_full else None,
            })  # fmt: skip
            progress.update(len(course.events))
        plan.journal.close()
    return course


def make_box(base: SearchConfig, console: Console) -> dict[str, Any]:
    """The box that all hypervolumes are shares of: from the teacher's loss to that of a guess, across the budget."""
    inputs = prepare_inputs(base, console)
    evaluator = Evaluator(EvaluatorSettings(
        teacher=inputs.teacher, precision=inputs.precision, ids=inputs.calibration.ids, threads=base.machine.threads,
    ))  # fmt: skip
    value = evaluator.evaluate(full_subnet(inputs.architecture)).values["perplexity"]
    return {"ideal": [math.log(value), inputs.budget.low],
            "nadir": [math.log(inputs.architecture.structure.vocab_size), inputs.budget.high]}  # fmt: skip


def curve(events: Sequence[dict[str, Any]], box: dict[str, Any]) -> list[float]:
    """The hypervolume after each candidate."""
    points: list[list[float]] = []
    values = []
    # Half a parameter above the upper end, for a model of exactly that size is inside the budget.
    nadir = [box["nadir"][0], box["nadir"][1] + 0.5]
    for event in events:
        if event["loss"] is not None:
            points.append([event["loss"], event["cost"]])
        values.append(hypervolume(np.array(points), box["ideal"], nadir) if points else 0.0)
    return values


def reached(events: Sequence[dict[str, Any]], values: Sequence[float], goal: float, cost: str) -> float | None:
    """What was spent when a hypervolume was first reached; None where it never was."""
    return next((event[cost] for event, value in zip(events, values, strict=True) if value >= goal), None)


def at_cost(events: Sequence[dict[str, Any]], values: Sequence[float], limit: float, cost: str) -> float:
    """The hypervolume at some cost."""
    return max((value for event, value in zip(events, values, strict=True) if event[cost] <= limit), default=0.0)


def table(out: Path) -> str:
    """The table of all ways that are there."""
    courses = {way: read_json(out / f"{way}.json") for way in WAYS if (out / f"{way}.json").is_file()}
    courses = {way: course for way, course in courses.items() if course["events"]}
    if not courses:
        raise UserError(f"{out} holds no finished way: run some first, without --table")
    box = read_json(out / "box.json")
    values = {way: curve(course["events"], box) for way, course in courses.items()}
    cheapest = {cost: min(course["events"][-1][cost] for course in courses.values()) for cost in ("flops", "seconds")}
    lines = ["| way | candidates | before the first: FLOPs, s | in all: FLOPs, s | hypervolume at the end | "
             f"at {_tera(cheapest['flops'])} | at {cheapest['seconds']:.0f} s | plain's end reached after: FLOPs, s | "
             "× fewer FLOPs | × faster |", "|---" * 10 + "|"]  # fmt: skip
    goal = values[PLAIN][-1] if PLAIN in values else None
    for way, course in courses.items():
        events, own = course["events"], values[way]
        cells = [_times(courses, values, way, goal, cost) for cost in ("flops", "seconds")]
        spent = course["prepared"]
        lines.append(
            f"| {way} | {len(events)} | {_tera(spent['flops'])}, {spent['seconds']:.0f} | "
            f"{_tera(events[-1]['flops'])}, {events[-1]['seconds']:.0f} | {own[-1]:.4f} | "
            f"{at_cost(events, own, cheapest['flops'], 'flops'):.4f} | "
            f"{at_cost(events, own, cheapest['seconds'], 'seconds'):.4f} | "
            f"{cells[0][0]}, {cells[1][0]} | {cells[0][1]} | {cells[1][1]} |"
        )
    return "\n".join(lines)


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.1f}T"


def _times(courses: Any, values: Any, way: str, goal: float | None, cost: str) -> tuple[str, str]:
    """What a way spent until plain's end value, and how many times less that is."""
    if goal is None:
        return "", ""
    mine = reached(courses[way]["events"], values[way], goal, cost)
    plain = reached(courses[PLAIN]["events"], values[PLAIN], goal, cost)
    if mine is None or plain is None:
        return "never", ""
    shown = _tera(mine) if cost == "flops" else f"{mine:.0f}"
    return shown, f"{plain / mine:.1f}"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="ways that are there are not run again")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    parser.add_argument("--ways", default=",".join(WAYS), help="[default: %(default)s]")
    parser.add_argument("--trials", type=int, default=40, help="candidates of each way [default: %(default)s]")
    parser.add_argument("--population", type=int, default=12, help="[default: %(default)s]")
    defaults = flatten(SearchConfig())
    for name in ("teacher", "data", "space", "params", "precision"):
        parser.add_argument(f"--{name}", default=defaults[name], help="as of the search")
    for name in ("calibration_tokens", "sequence_length", "importance_steps", "importance_tokens", "seed", "threads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=defaults[name],
                            help="as of the search")  # fmt: skip
    parser.add_argument("--stages", default=defaults["stages"], help="as of the search; plain has none")
    return parser.parse_args(list(argv))


def main(argv: Sequence[str]) -> int:
    """Run the ways that are not there yet, and print the table."""
    given = arguments(argv)
    try:
        ways = [way for way in given.ways.split(",") if way]
        if unknown := [way for way in ways if way not in WAYS]:
            raise UserError(f"--ways: '{unknown[0]}' is none of {', '.join(WAYS)}")
        if not given.table:
            run_ways(given, ways)
        print(table(given.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_ways(given: argparse.Namespace, ways: Sequence[str]) -> None:
    """Run the ways that are not there yet."""
    options = {name: value for name, value in vars(given).items() if name not in ("out", "ways", "table")}
    base = SearchConfig().replace(**options, held_out_tokens=given.sequence_length, reconstruct="none")
    given.out.mkdir(parents=True, exist_ok=True)
    kept = given.out / "options.json"
    if kept.is_file() and read_json(kept) != options:
        raise UserError(f"{given.out} was begun with other options: give the same, or another --out")
    write_json(kept, options)
    torch.set_num_threads(given.threads)
    before = os.environ.get("SLM_RAY_CACHE")
    own_cache(given.out)
    console = Console()
    try:
        if not (given.out / "box.json").is_file():
            write_json(given.out / "box.json", make_box(base, console))
        for way in ways:
            if not (given.out / f"{way}.json").is_file():
                write_json(given.out / f"{way}.json", dataclasses.asdict(run_way(base, way, given.out, console)))
    finally:
        os.environ.pop("SLM_RAY_CACHE")
        if before is not None:
            os.environ["SLM_RAY_CACHE"] = before


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
