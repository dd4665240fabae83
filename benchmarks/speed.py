"""Candidates decided per minute: the raced search against measuring each on all calibration tokens with the HF model.

The slow way extracts a candidate and runs transformers' own forward pass in fp32 on all calibration tokens; it is
timed on a sample of the run's candidates, with all CPUs for one candidate at a time. The exhaustive front comes from
measuring every candidate of the run on all tokens.

python benchmarks/speed.py RUN [--sample 6]
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch
from common import as_ids, load_result, machine_line, run_argument
from quality import perplexity

from slm_ray.models.extraction import extract
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.session import ray_session
from slm_ray.search.evaluator import EvaluatorSettings
from slm_ray.search.held_out import measure_held_out
from slm_ray.search.inputs import prepare_inputs
from slm_ray.search.pareto import front_of
from slm_ray.search.rank import bind_genomes, rank_units


def main() -> None:
    """Print both rates and both fronts."""
    parser = run_argument(__doc__ or "")
    parser.add_argument("--sample", type=int, default=4)
    arguments = parser.parse_args()
    config, result, trials = load_result(arguments.run)
    inputs = prepare_inputs(config, Console())
    teacher, calibration = inputs.teacher, inputs.calibration
    ranking = rank_units(config, inputs, Progress(Console(), "importance", 1))
    stack = bind_genomes(config, inputs, ranking)
    specs = [stack.decode(stack.from_text(trial["genes"])) for trial in trials]
    ids = as_ids(calibration)

    torch.set_num_threads(usable_cpus())
    state, hf_config, family = teacher.state(), teacher.config(), teacher.family()
    slow = []
    for index in np.linspace(0, len(specs) - 1, arguments.sample).astype(int):
        start = time.perf_counter()
        value = perplexity(extract(state, hf_config, family, specs[index]), ids)
        slow.append(time.perf_counter() - start)
        print(f"HF, trial {trials[index]['trial']}: {slow[-1]:.1f} s, perplexity {value:.2f}", flush=True)
    fast_seconds = result["spent"]["seconds"]["search"]
    slow_rate, fast_rate = 60 / float(np.median(slow)), 60 * len(trials) / fast_seconds
    print(f"\n{machine_line()}")
    print(
        f"search: {len(trials)} candidates in {fast_seconds:.0f} s, {fast_rate:.1f} a minute (start of actors included)"
    )
    print(f"HF model on {ids.numel():,} tokens, fp32: {slow_rate:.1f} a minute; ratio {fast_rate / slow_rate:.1f}x")

    settings = EvaluatorSettings(
        teacher=teacher, precision=inputs.precision, ids=calibration.ids, proxies=("perplexity",), stage_tokens=(),
        confidence=0.9, threads=1,
    )  # fmt: skip
    with ray_session(None, usable_cpus()):
        exact = measure_held_out(settings, specs, lambda done: None)
    costs = [trial["cost"]["params"] for trial in trials]
    low, high = min(costs), max(costs)
    steps = [np.ceil((cost - low) / ((high - low) / 32)) for cost in costs]
    rows = front_of(np.array([[np.log(m.value), step] for m, step in zip(exact, steps, strict=True)]))
    print("\nexhaustive front (trial, parameters, perplexity):")
    print(json.dumps([[trials[r]["trial"], costs[r], round(exact[r].value, 2)] for r in rows]))
    print("front of the raced search:")
    print(
        json.dumps([[e["trial"], e["cost"]["params"], round(e["calibration_perplexity"], 2)] for e in result["front"]])
    )


if __name__ == "__main__":
    main()
