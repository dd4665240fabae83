"""k models evaluated by two workers against one after another: how close to the ideal, and how often each is loaded.

    python benchmarks/evaluate_fan_out.py --models 4 --tokens 8192

Makes random twins of the bundled teacher (speed does not depend on weights), measures each alone with one thread, in a
process of its own, then all with ``--workers 2 --threads 1``. The ideal is half the sum of the single times, each from
the start of its process; Ray's start is part of the other time. Interleaved: half of the singles before, half after.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slm_ray.evaluate.models import find_model
from slm_ray.evaluate.subjects import made_peer
from slm_ray.models.bundled import BUNDLED_NAME
from slm_ray.runtime.progress import Console


def evaluate(models: list[str], out: Path, tokens: int, workers: int) -> tuple[float, dict]:
    command = [sys.executable, "-m", "slm_ray.evaluate", "--fresh", "--eval-tokens", str(tokens), "--threads", "1"]
    command += ["--precision", "fp32", "--peers", "none", "--workers", str(workers), "--out", str(out)]
    for model in models:
        command += ["--model", model]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, json.loads((out / "evaluate.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args()
    teacher = find_model(BUNDLED_NAME)
    models = [str(made_peer("random", teacher, Console(), seed=seed).folder) for seed in range(options.models)]
    half = options.models // 2
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        before = [evaluate([model], out / f"single-{i}", options.tokens, 1)[0] for i, model in enumerate(models[:half])]
        together, result = evaluate(models, out / "together", options.tokens, 2)
        after = [evaluate([model], out / f"after-{i}", options.tokens, 1)[0] for i, model in enumerate(models[half:])]
    singles = before + after
    ideal = sum(singles) / 2
    print(f"single, 1 thread: {', '.join(f'{seconds:.1f}' for seconds in singles)} s")
    share = ideal / together
    print(f"{options.models} models, 2 workers x 1 thread: {together:.1f} s; ideal {ideal:.1f} s; {share:.3f}")
    print(f"models loaded: {result['spent']['models_loaded']} of {options.models}; parts {result['spent']['by_part']}")


if __name__ == "__main__":
    main()
