"""Whether the numbers are those of lm-eval's own command line on the same models and data, to the last digit.

    python benchmarks/lm_eval_parity.py --task-data FOLDER --limit 50

FOLDER is laid out as docs/tasks.md says. The command line is given the same files in its own way: task files that
include lm-eval's and read JSON. It is called once per task or group: it mixes the requests of all its tasks into
batches, and in floating point the other members of a batch may show in the last digits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import machine_line

from slm_ray.config.base import build_config
from slm_ray.evaluate.config import TasksConfig
from slm_ray.evaluate.models import LoadedModel, find_model, load_tokenizer
from slm_ray.evaluate.task_plan import PlannedTask, plan_tasks
from slm_ray.evaluate.task_run import run_task
from slm_ray.evaluate.tasks import lm_eval_version
from slm_ray.models.extraction import extract, save_student
from slm_ray.models.teachers import load_teacher
from slm_ray.records.subnet import LayerUnits, SubnetSpec, full_subnet

TASKS = "arc_easy,arc_challenge,hellaswag,piqa,lambada_openai,winogrande,boolq,xcopa_sw,blimp"


def command_line(name: str, model: Path, include: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What lm-eval's command says of a task or group: name to metrics."""
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--tasks", name,
        "--model_args", f"pretrained={model},dtype=float32,trust_remote_code=True", "--include_path", str(include),
        "--batch_size", str(options.batch), "--limit", str(options.limit), "--output_path", str(out),
        *(["--num_fewshot", str(options.shots)] if options.shots is not None else []),
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    [file] = out.rglob("results_*.json")
    return dict(json.loads(file.read_text())["results"])


def save_heterogeneous(folder: Path) -> Path:
    """A student of the bundled teacher whose layers all differ: heads, neurons, and one layer without attention."""
    teacher = load_teacher("smollm2-135m")
    whole, layers = full_subnet(teacher.architecture()), []
    for index, units in enumerate(whole.layers[::2]):
        heads = () if index == 3 else units.kv_heads[: 1 + index % len(units.kv_heads)]
        neurons = units.neurons[: len(units.neurons) - 64 * index]
        layers.append(LayerUnits(units.source, heads, units.query_heads[: len(heads)], neurons))
    spec = SubnetSpec(whole.hidden, tuple(layers))
    save_student(extract(teacher.state(), teacher.config(), teacher.family(), spec, dtype=torch.float32), folder)
    teacher.tokenizer().save_pretrained(folder)
    return folder


def compared(
    model: str, tasks: Sequence[PlannedTask], options: argparse.Namespace
) -> Iterator[tuple[str, str, float, float]]:
    """Task, metric, our number and the command line's, for every name."""
    found = find_model(model)
    loaded, tokenizer = LoadedModel(found, "fp32", torch.device("cpu")), load_tokenizer(found)
    for planned in tasks:
        header = {"name": planned.name, "key": "parity", "settings": {}, "model": model, "params": 0, "seconds": 0}
        record = run_task(loaded, tokenizer, planned, header, batch=options.batch, say=lambda text: None)
        mine = record.tasks[-1]  # a group comes behind its tasks
        with tempfile.TemporaryDirectory() as scratch:
            include, out = Path(scratch) / "tasks", Path(scratch) / "out"
            include.mkdir()
            for name, local in planned.local.items():
                (include / f"{name}.yaml").write_text(local.task_file(name, options.task_data.resolve()))
            theirs = command_line(planned.name, found.folder, include, out, options)[planned.name]
        for key, value in theirs.items():
            metric, _, by = key.partition(",")
            if by != "none" or not isinstance(value, float):
                continue
            figure = mine.metrics[metric.removesuffix("_stderr")]
            ours = figure.stderr if metric.endswith("_stderr") else figure.value
            yield planned.name, metric, math.nan if ours is None else ours, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task-data", type=Path, required=True)
    parser.add_argument("--tasks", default=TASKS, help="tasks and groups, with commas between")
    parser.add_argument(
        "--model", action="append", help="[default: the bundled teacher, and a student of uneven layers]"
    )
    parser.add_argument("--shots", type=int)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    values = {name: getattr(options, name) for name in ("tasks", "shots", "limit")}
    config = build_config(TasksConfig, values | {"task_data": str(options.task_data)})
    with tempfile.TemporaryDirectory() as scratch:
        tasks, _ = plan_tasks(config)
        models = {name: name for name in options.model or ["smollm2-135m"]}
        if not options.model:
            models["heterogeneous student"] = str(save_heterogeneous(Path(scratch) / "student"))
        how = f"first {options.limit} documents, batch {options.batch}, fp32"
        print(f"{machine_line()}, lm-eval {lm_eval_version()}, {how}\n")
        print("| model | task | metric | here | lm-eval's command | equal |\n|---|---|---|---|---|---|", flush=True)
        unequal = 0
        for name, model in models.items():
            for task, metric, mine, theirs in compared(model, tasks, options):
                unequal += mine != theirs
                same = "yes" if mine == theirs else "NO"
                print(f"| {name} | {task} | {metric} | {mine!r} | {theirs!r} | {same} |", flush=True)
    print(f"\n{unequal} numbers differ")


if __name__ == "__main__":
    main()
