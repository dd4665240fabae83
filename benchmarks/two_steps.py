"""One cut against two with training in between, at equal tokens: losses on held-out text, and what each cost.

PYTHONPATH=. python benchmarks/two_steps.py --teacher smollm2-135m --tokens 100k --seeds 1
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config.units import parse_number
from slm_ray.pretrain.command import main as pretrain
from slm_ray.runtime.session import ray_session
from slm_ray.search.command import main as search
from tests.search.tiny_run import make_teacher, make_tiny, sentences
from tests.search.without_ray import run_without_ray
from tests.studies.short_runs import pretrain_without_ray


def flags(**given: Any) -> list[str]:
    """Options as a command line has them."""
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def run_arm(
    steps: int, seed: int, tokens: int, folder: Path, options: argparse.Namespace, inputs: dict[str, Any]
) -> dict[str, Any]:
    """Search, train the winner, and read what came of it.

    Args:
        steps: Cuts.
        seed: Of search and training.
        tokens: Of all trainings together.
        folder: Where the runs go.
        options: The command line.
        inputs: Options of both commands.
    """
    each = tokens // steps
    rate = options.learning_rate
    more = {"steps": steps, "step_tokens": each, "step_learning_rate": rate} if steps > 1 else {}
    found, trained = folder / "search", folder / "trained"
    status = search(
        flags(out=found, params=options.params, trials=options.trials, winners=1, audit=0, tracker="none", seed=seed,
              workers=1, **more, **inputs["search"])
    )  # fmt: skip
    status = status or pretrain(
        flags(out=trained, student=found / "winners" / "0", tokens=each, tracker="none", threads=1, seed=seed,
              **inputs["pretrain"])
    )  # fmt: skip
    if status:
        raise SystemExit(status)
    result = json.loads((found / "result.json").read_text())
    (model,) = json.loads((trained / "result.json").read_text())["models"]
    between = [step["training"]["tokens"] for step in result["spent"].get("steps", [])]
    flops = result["spent"]["flops"] + sum(model["flops"].values())
    return {
        "cuts": steps, "seed": seed, "params": result["front"][0]["cost"]["params"], "between": sum(between),
        "steps": result.get("steps", []), "first": model["evals"][0]["loss"], "last": model["evals"][-1]["loss"],
        "tokens": model["tokens"], "flops": flops,
    }  # fmt: skip


def main() -> None:
    """Run both arms for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", help="as a search takes it [default: a Llama of 80 thousand parameters]")
    parser.add_argument("--params", default="0.45")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--tokens", default="100k", help="of all trainings of an arm together")
    parser.add_argument("--learning-rate", default="1e-3", help="of all trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="as the commands do it; else in this process, as tests do")
    options = parser.parse_args()
    tokens = int(parse_number(options.tokens))
    rows = []
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        if options.ray:
            stack.enter_context(ray_session(None, 2))
        else:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            run_without_ray(patch)
            pretrain_without_ray(patch)
        if options.teacher:
            given: dict[str, Any] = {"teacher": options.teacher}
            inputs: dict[str, Any] = {"search": given, "pretrain": given}
        else:
            tiny = make_tiny(Path(scratch))
            text = sentences(10_000)
            tiny.corpus.write_text(text)
            make_teacher(tiny.teacher, text, steps=1500)
            given = {"teacher": tiny.teacher, "data": tiny.corpus, "sequence_length": 32}
            inputs = {
                "search": given | {"space": tiny.space, "calibration_tokens": 1024, "held_out_tokens": 1024,
                                   "stages": "224,512", "importance_steps": 12, "importance_tokens": 256,
                                   "reconstruct_tokens": 8192, "teacher_text": 0, "population": 8},
                "pretrain": given | {"eval_tokens": 1024},
            }  # fmt: skip
        inputs["pretrain"] = inputs["pretrain"] | {"learning_rate": options.learning_rate}
        for seed in range(options.seeds):
            for steps in (1, 2):
                rows.append(run_arm(steps, seed, tokens, Path(scratch) / f"{steps}-{seed}", options, inputs))
                print(json.dumps(rows[-1], default=str), flush=True)
    print("\n| seed | cuts | parameters | tokens between | tokens after | loss after the cut | loss trained | FLOPs |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['seed']} | {row['cuts']} | {row['params']:,} | {row['between']:,} | {row['tokens']:,} | "
              f"{row['first']:.3f} | {row['last']:.3f} | {row['flops']:.3g} |")  # fmt: skip


if __name__ == "__main__":
    main()
