"""How much faster a search is with two worker slots than with one: the same candidates, in turns on a quiet machine.

python benchmarks/slots.py --out FOLDER [--trials 40] [--rounds 2] [-- more options of the search]

The rate is taken twice: of the search phase whole, start of its workers included, and from the first candidate on, as a
longer search would have it. Everything before the search comes out of the cache from the first run on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from common import machine_line

from slm_ray.records.jsonl import read_records

SLOTS = (1, 2)


def run(out: Path, slots: int, trials: int, more: list[str]) -> dict[str, float]:
    """One search, and its rates in candidates a minute.

    Args:
        out: Its run folder.
        slots: Candidates at once.
        trials: Candidates in all.
        more: Further options.
    """
    words = [
        sys.executable, "-m", "slm_ray.search", "--workers", str(slots), "--trials", str(trials), "--out", str(out),
        "--winners", "1", "--reconstruct", "none", "--audit", "0", "--held-out-tokens", "512", "--tracker", "none",
        *more,
    ]  # fmt: skip
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    spent: dict[str, Any] = json.loads((out / "result.json").read_text())["spent"]
    ends = [datetime.fromisoformat(record["finished_at"]) for record in read_records(out / "trials.jsonl")]
    return {
        "whole": 60 * trials / spent["seconds"]["search"],
        "going": 60 * (len(ends) - 1) / (max(ends) - min(ends)).total_seconds(),
    }


def main() -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("more", nargs="*", help="further options of the search, behind --")
    given = parser.parse_args()
    found: dict[int, list[dict[str, float]]] = {slots: [] for slots in SLOTS}
    print(machine_line())
    for number in range(given.rounds):
        for slots in SLOTS:
            rates = run(given.out / f"{number}-{slots}", slots, given.trials, given.more)
            found[slots].append(rates)
            shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
            print(f"round {number}, {slots} at once: {shown} candidates a minute", flush=True)
    for kind in ("whole", "going"):
        one, two = (median(rates[kind] for rates in found[slots]) for slots in SLOTS)
        print(f"{kind}: {one:.1f} and {two:.1f} candidates a minute, ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
