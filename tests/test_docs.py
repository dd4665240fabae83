"""Docs that cannot rot: every command in them is run here or by .ci/run, every flag exists, every link works."""

import argparse
import ast
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from slm_ray.cli import STAGES, parser_of
from slm_ray.config.base import flag_of, options_of
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.runtime.commands import run_command
from slm_ray.search import estimates
from slm_ray.search.config import SearchConfig
from slm_ray.search.space import parse_space
from slm_ray.studies.points import expand
from slm_ray.studies.reader import parse_sweep
from tests.models import tiny

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
SEARCH = "python -m slm_ray.search"
PRETRAIN = "python -m slm_ray.pretrain"
LOGITS = "python -m slm_ray.logits"
PIPELINE = "python -m slm_ray.pipeline"
SWEEP = "python -m slm_ray.sweep"
# Commands with a dry run, and a word of what it prints.
DRY_RUNS = {
    SEARCH: "together", PRETRAIN: "FLOPs in all", LOGITS: "FLOPs", PIPELINE: "report: run",
    SWEEP: "all runs, each once",
}  # fmt: skip

# Commands that no test here runs, and what does.
RUN_ELSEWHERE = {
    **dict.fromkeys(
        (
            "python -m slm_ray.evaluate --model runs/mine/pretrain/winner-0.student/model --model smollm2-135m --out "
            "runs/evaluation",
            "python -m slm_ray.evaluate --model my-winner --tasks small --prompts default --efficiency --workers 2",
            "python -m slm_ray.evaluate --model my-winner --data wiki=my-wiki.txt --data code=my-code.jsonl --part "
            "whole --window sliding",
            "python -m slm_ray.evaluate --resume runs/evaluation",
        ),
        "tests/evaluate, on models of its own",
    ),
    **dict.fromkeys(
        (
            "python -m slm_ray.evaluate --model my-winner --prompts default --references --max-new-tokens 64 --out "
            "runs/evaluation",
            "python -m slm_ray.evaluate --model my-winner --prompts my-prompts.jsonl --temperature 0.8 --top-p 0.95 "
            "--seed 1",
            "python -m slm_ray.evaluate --model my-winner --data none --efficiency --threads 4",
        ),
        "tests/evaluate/test_generation_in_an_evaluation.py, on models of its own",
    ),
    **dict.fromkeys(
        (
            "python -m slm_ray.export my-winner --to gguf --quantize Q8_0",
            "python -m slm_ray.export my-winner --to vllm",
            "python -m slm_ray.export my-winner --to plain",
        ),
        "tests/export, on models of its own",
    ),
    **dict.fromkeys(
        (
            "python -m slm_ray.rate page runs/evaluation --models winner-0,teacher --pairs 100 --seed 1",
            "python -m slm_ray.rate table runs/evaluation ratings-Asha.json ratings-Ben.json",
        ),
        "tests/evaluate/test_rating.py, on runs of their own",
    ),
    **dict.fromkeys(
        (
            "python -m slm_ray.tokenizer train --data my-texts --size 8192 --out my-tokenizer",
            "python -m slm_ray.tokenizer extend --model my-model --data my-texts --add 4000 --out my-model-with-words",
            "python -m slm_ray.tokenizer extend --model my-teacher --tokenizer my-model-with-words --data my-texts "
            "--out my-teacher-with-words",
            "python -m slm_ray.tokenizer trim --model smollm2-135m --data my-texts --keep 24192 --out my-smaller-model",
            "python -m slm_ray.tokenizer exchange --model smollm2-135m --data my-texts --keep 24192 --add 4096 "
            "--out my-teacher",
        ),
        "tests/test_tokenizer_command.py, on models of its own",
    ),
    "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python -m slm_ray.search --space fine": ".ci/run",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python -m pytest": ".ci/run",
    "python3 -m venv .venv && .venv/bin/pip install -e .": ".ci/run, as the beginning of README's first command",
    "source .venv/bin/activate": "the shell",
    "python -m slm_ray.dashboard --entity my-team --project slm_ray": "tests/report, on a local server",
    "wandb sync runs/fine-20260101-120000/wandb/offline-run-20260101_120000-abc": "W&B's own command",
    f"{PRETRAIN} --resume runs/pretrain-20260101-120000": "tests/pretrain/test_training_resume.py, on runs of its own",
    f"{PRETRAIN} --export runs/pretrain-20260101-120000/winner-0.student/checkpoints/step-00000100 --out my-export": (
        "tests/pretrain/test_command.py, on a run of its own"
    ),
    **dict.fromkeys(
        (
            "python -m slm_ray.proxies --run my-run --tokens 20k --candidates 12 --dry-run",
            "python -m slm_ray.proxies --run my-run --tokens 20k --proxies perplexity,kl,importance,params",
            "python -m slm_ray.proxies --resume runs/proxies-20260101-120000",
        ),
        "tests/proxies/test_proxies_command.py, on a run of its own",
    ),
    **dict.fromkeys(
        (
            f"{SWEEP} sweeps/debug.yaml --out runs/debug",
            f"{SWEEP} --resume runs/debug",
            f"{SWEEP} --table runs/debug --format csv",
        ),
        ".ci/run, and tests/sweep/test_sweep_run.py on runs of its own",
    ),
    f"{SEARCH} --resume runs/fine-20260101-120000": ".ci/run and tests/search/test_resume.py, on runs of their own",
    "python -m slm_ray.report runs/fine-20260101-120000": ".ci/run and tests/report, on runs of their own",
    "python -m slm_ray.report runs/fine-20260101-120000 runs/evaluation --out runs/together": (
        "tests/report/test_set_report.py, on runs of its own"
    ),
}


def _blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(page, block) for page, text in TEXTS.items() for block in pattern.findall(text)]


def _commands() -> list[str]:
    lines = [line.strip() for _, block in _blocks("bash") for line in block.splitlines()]
    return sorted({line for line in lines if line and not line.startswith("#")})


def _dry_runs() -> list[str]:
    return [command for command in _commands() if _stage(command) and command not in RUN_ELSEWHERE]


def _stage(command: str) -> str | None:
    """Which command with a dry run a line is."""
    return next((stage for stage in DRY_RUNS if command.startswith(stage + " ")), None)


def _command_module(stage: str) -> Any:
    return importlib.import_module(STAGES[stage.rpartition(".")[2]].module)


def _block_after(page: str, language: str, first: str) -> str:
    """The block of a page that begins with a line."""
    return next(block for name, block in _blocks(language) if name == page and block.startswith(first))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with everything that the pages' examples name."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("my-model", "my-winner"):
        tiny.tiny_model("llama", max_position_embeddings=1024).save_pretrained(folder / name)
    shutil.copytree(ROOT / "sweeps", folder / "sweeps")
    (folder / "pipeline.yaml").write_text(_block_after("docs/pipeline.md", "yaml", "# pipeline.yaml"))
    (folder / "my-texts").mkdir()
    (folder / "my-texts" / "page.txt").write_text("A page of text.\n")
    (folder / "my-texts.jsonl").write_text(json.dumps({"body": "A page of text."}) + "\n")
    (folder / "mine.yaml").write_text(_block_after("docs/search_spaces.md", "yaml", "name: mine"))
    (folder / "search.yaml").write_text(_block_after("docs/search.md", "yaml", "# search.yaml"))
    return folder


def test_every_command_is_run_by_a_test_or_by_ci():
    assert set(_commands()) - set(_dry_runs()) == set(RUN_ELSEWHERE) & set(_commands())
    assert set(RUN_ELSEWHERE) <= set(_commands()), "commands that no page names any more"


@pytest.mark.parametrize("command", _dry_runs())
def test_every_command_in_the_pages_is_one_that_a_dry_run_accepts(command, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(estimates, "multiplication_rate", lambda *_: 1e12)
    stage = _stage(command)
    arguments = shlex.split(command.removeprefix(stage))
    assert run_command(_command_module(stage).main, [*arguments, "--dry-run"]) == 0, capsys.readouterr().err
    assert DRY_RUNS[stage] in capsys.readouterr().out


def test_readme_begins_with_the_two_commands_that_ci_takes_from_it():
    blocks = [block.strip() for page, block in _blocks("bash") if page == "README.md"]
    assert [block for block in blocks if block.startswith("python3 -m venv ")] == blocks[:2]
    assert blocks[0].endswith(f"{SEARCH} --space fine")
    assert blocks[1].endswith("python -m pytest")


def test_the_makefile_has_the_targets_that_pages_promise():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"setup", "search", "test", "check", "bench"} <= set(targets)


def _flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """A parser's flags, and those of the parsers in it."""
    flags = {flag for action in parser._actions for flag in action.option_strings}
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return flags.union(*(_flags_of(one) for action in inner for one in action.choices.values()))


@pytest.mark.parametrize("page", TEXTS)
def test_every_flag_in_a_page_exists(page):
    known = {"--version", "--working-dir", "--no-wait", "--follow"}  # of `ray job submit` and `ray job logs`
    known |= {"--trust-remote-code", "--model-impl"}  # of `vllm serve`
    for name in STAGES:
        known |= _flags_of(parser_of(name))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", TEXTS[page]))
    assert named - known == set()


def test_the_page_on_the_search_has_every_option():
    named = set(re.findall(r"--[a-z][a-z-]*[a-z]", TEXTS["docs/search.md"]))
    assert {flag_of(name) for name in options_of(SearchConfig)} - named == set()


def test_the_page_on_pretraining_has_every_option():
    named = set(re.findall(r"--[a-z][a-z0-9-]*[a-z0-9]", TEXTS["docs/pretraining.md"]))
    assert {flag_of(name) for name in options_of(PretrainConfig)} - named == set()


def test_every_stage_is_in_the_readme():
    assert all(f"slm-ray {stage}" in TEXTS["README.md"] for stage in STAGES)


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#\s]+)", TEXTS[page])
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in local if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_yaml_in_the_pages_is_what_it_says():
    for page, block in _blocks("yaml"):
        loaded = yaml.safe_load(block)
        if "axes" in loaded:
            assert parse_space(loaded, page).axes
        elif "stage" in loaded:
            assert all(expand(parse_sweep(loaded, page, scale, [], "mine")) for scale in (None, "paper"))
        else:
            known = {name for config in (SearchConfig, PretrainConfig) for name in options_of(config)}
            assert set(loaded) <= known | {"search", "logits", "pretrain", "evaluate"}


def test_json_in_the_pages_is_json():
    assert all(json.loads(block) for _, block in _blocks("json"))


def test_python_in_the_pages_compiles_and_imports_what_there_is():
    for page, block in _blocks("python"):
        try:
            tree = ast.parse(block)
        except SyntaxError:
            assert page == "docs/adding_a_family.md", "only this page shows lines out of the middle of a file"
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("slm_ray", "transformers"):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
