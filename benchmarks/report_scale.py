"""How long the report of many runs takes to build, and how large its page is: 1,000 trials and 20 training runs.

    python benchmarks/report_scale.py

The records are made up, in a temporary folder: what is measured is reading, drawing and writing.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slm_ray.config.units import format_bytes
from slm_ray.records.training import TrainEvaluation
from tests.report.made_search import finished_search
from tests.report.made_training import STARTS, evaluations, training_run, write_lines

LIMIT_SECONDS, LIMIT_BYTES = 10.0, 8e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--trainings", type=int, default=20, help="runs of three models each")
    parser.add_argument("--evaluations", type=int, default=200, help="of each model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        runs = [finished_search(base / "search", given.trials)]
        for number in range(given.trainings):
            runs.append(training_run(base / f"training-{number}"))
            for start, (first, last, _) in STARTS.items():
                records = evaluations(first, last, given.evaluations)
                write_lines(runs[-1] / f"winner-0.{start}", TrainEvaluation, records)
        command = [sys.executable, "-m", "slm_ray.report", *map(str, runs), "--out", str(base / "all")]
        start_time = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, size = time.perf_counter() - start_time, (base / "all/report.html").stat().st_size
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        read = sum(file.stat().st_size for run in runs for file in run.rglob("*") if file.is_file())
    print(f"{given.trials:,} trials, {given.trainings} training runs of {len(STARTS)} models, {format_bytes(read)}")
    print(f"time  {seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of one core (at most {LIMIT_SECONDS:g} s)")
    print(f"page  {size / 1e6:.2f} MB (at most {LIMIT_BYTES / 1e6:g} MB)")
    if used.ru_utime + used.ru_stime > LIMIT_SECONDS or size > LIMIT_BYTES:
        sys.exit("over the limit")


if __name__ == "__main__":
    main()
