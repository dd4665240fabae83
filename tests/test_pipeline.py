import json
import sys
from types import SimpleNamespace

import pytest

from slm_ray import pipeline
from slm_ray.cli import parser_of
from slm_ray.config.base import build_config
from slm_ray.config.errors import UserError
from slm_ray.distill.config import LogitsConfig
from slm_ray.pipeline import main
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.records.base import write_record
from slm_ray.records.search import SearchResult
from slm_ray.records.training import ModelOutcome, TrainResult
from slm_ray.runtime.commands import run_command
from slm_ray.search.config import SearchConfig
from tests.report.made_search import make_result, make_trials
from tests.report.made_training import outcome
from tests.search.tiny_run import make_tiny

FAST = ["--tokens", "8192", "--distill", "top-k-tail"]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


class Stages:
    """Stands in for the stages' commands: reads their real options and leaves what they leave, in little."""

    def __init__(self):
        self.ran, self.fail, self.seed = [], None, 0

    def module(self, name):
        return SimpleNamespace(main=lambda argv: self.main(name, argv))

    def main(self, name, argv):
        self.ran.append((name, list(argv)))
        given = vars(self.parser(name).parse_args(argv)) if name != "report" else {}
        out = self.out_of(given, argv)
        if name in ("search", "pretrain"):
            write(out / "config.json", {"student": "x"})
        if self.fail == name:
            raise UserError("the disk is full")
        getattr(self, name)(out, given)
        return 0

    @staticmethod
    def parser(name):
        return parser_of(name)

    @staticmethod
    def out_of(given, argv):
        from pathlib import Path

        return Path(given.get("out") or given.get("resume") or argv[-1])

    def search(self, out, given):
        if given.get("resume") is None:
            build_config(SearchConfig, options(given))
        for number in range(2):
            write(out / f"winners/{number}/config.json", "{}")
            write(out / f"winners/{number}/model.safetensors", f"weights {self.seed}")
        winners = [{"folder": f"winners/{n}", "trial": n, "num_bytes": 9, "dtype": "fp32"} for n in (0, 1)]
        write_record(out, SearchResult.model_validate(make_result(make_trials(20), winners=winners)))

    def logits(self, out, given):
        build_config(LogitsConfig, options(given))
        write(out / "manifest.json", {"made": given})

    def pretrain(self, out, given):
        if given.get("resume") is None:
            build_config(PretrainConfig, options(given)).check_given()
        write(out / "winner-0.student/model/model.safetensors", "trained")
        models = [ModelOutcome.model_validate(outcome(out, "winner-0.student", "student"))]
        write_record(out, TrainResult(command="", models=tuple(models)))

    def evaluate(self, out, given):
        write(out / "evaluate.json", {"models": given["model"]})

    def report(self, out, given):
        write(out / "report.html", "page")
        write(out / "report.md", "page")

    def names(self):
        """The stages run since the last time this was asked."""
        names, self.ran = [name for name, _ in self.ran], []
        return names


def options(given):
    of_the_command = ("config", "resume", "dry_run", "debug", "export")
    return {name: value for name, value in given.items() if name not in of_the_command}


@pytest.fixture
def stages(monkeypatch, tmp_path):
    found = Stages()
    names = {}
    for name in pipeline.STAGES:
        names[name] = f"fake_{name}"
        monkeypatch.setitem(sys.modules, names[name], found.module(name))
    monkeypatch.setattr(pipeline, "_MODULES", names)
    monkeypatch.chdir(tmp_path)
    return found


def run(*arguments):
    return run_command(main, [*arguments, "--out", "out"])


def test_every_stage_runs_once_and_then_is_skipped(stages, tmp_path, capsys):
    assert run(*FAST) == 0
    assert stages.names() == ["search", "logits", "pretrain", "evaluate", "report"]
    state = json.loads((tmp_path / "out/pipeline.json").read_text())
    assert set(state["stages"]) == set(pipeline.STAGES)
    assert all(entry["output"] and entry["key"] for entry in state["stages"].values())
    assert run(*FAST) == 0
    assert stages.names() == []
    assert capsys.readouterr().err.count("skip (done, and unchanged)") == 5


def test_the_capture_is_there_only_where_a_store_is_read(stages):
    assert run("--tokens", "8192", "--distill", "full") == 0
    assert stages.names() == ["search", "pretrain", "evaluate", "report"]


def test_stages_are_given_what_the_ones_before_them_left(stages):
    assert run(*FAST, "--teacher", "teacher", "--params", "0.5", "--compare", "--data", "texts") == 0
    given = dict(stages.ran)
    assert "--params 0.5" in " ".join(given["search"]) and "--winners 1" in " ".join(given["search"])
    assert "--student out/search/winners/0,out/search/winners/1" in " ".join(given["pretrain"])
    assert "--compare" in given["pretrain"] and "--store out/logits" in " ".join(given["pretrain"])
    captured = " ".join(given["logits"])
    assert "--tokens 8192" in captured and "--teacher teacher" in captured and "--data texts" in captured
    models = given["evaluate"][given["evaluate"].index("--model") + 1].split(",")
    assert models == ["out/pretrain/winner-0.student/model", "teacher", "out/search/winners/0", "out/search/winners/1"]
    assert given["report"] == ["out"]


def test_a_changed_option_reruns_its_stage_and_those_that_read_it_and_keeps_the_old(stages, tmp_path, capsys):
    assert run(*FAST) == 0
    stages.names()
    assert run("--tokens", "12288", "--distill", "top-k-tail") == 0
    assert stages.names() == ["logits", "pretrain", "evaluate", "report"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.old-*")) == [
        "evaluate.old-1", "logits.old-1", "pretrain.old-1",
    ]  # fmt: skip
    assert "out/pretrain was moved to out/pretrain.old-1" in capsys.readouterr().err
    assert run(*FAST, "--params", "0.5") == 0
    assert stages.names() == ["search", "logits", "pretrain", "evaluate", "report"]
    assert (tmp_path / "out/pretrain.old-2").is_dir()


def test_a_changed_input_file_counts_as_a_changed_option(stages, tmp_path):
    (tmp_path / "texts.txt").write_text("one")
    assert run(*FAST, "--data", "texts.txt") == 0
    stages.names()
    (tmp_path / "texts.txt").write_text("two")
    assert run(*FAST, "--data", "texts.txt") == 0
    assert stages.names() == ["search", "logits", "pretrain", "evaluate", "report"]


def test_how_a_stage_is_run_is_no_reason_to_run_it_again(stages, tmp_path):
    config = tmp_path / "p.yaml"
    assert run(*FAST) == 0
    stages.names()
    config.write_text("search: {workers: 1}\nlogits: {threads: 2}\npretrain: {micro_batch: 2}\nevaluate: {batch: 1}\n")
    assert run(*FAST, "--config", str(config)) == 0
    assert stages.names() == []


@pytest.mark.parametrize("changed", ["search/winners/0/model.safetensors", "pretrain/result.json"])
def test_an_output_that_was_changed_is_made_again(stages, tmp_path, changed):
    assert run(*FAST) == 0
    stages.names()
    (tmp_path / "out" / changed).write_text('{"models": []}')
    assert run(*FAST) == 0
    assert stages.names()[0] == changed.split("/")[0]


@pytest.mark.parametrize("name", ["search", "pretrain"])
def test_an_interrupted_run_is_resumed(stages, tmp_path, name, capsys):
    stages.fail = name
    assert run(*FAST) == 2
    assert capsys.readouterr().err.endswith("error: the disk is full\n")
    stages.fail, _ = None, stages.names()
    (tmp_path / "p.yaml").write_text(f"{name}: {{threads: 2}}\n")
    assert run(*FAST, "--config", "p.yaml") == 0
    argv = stages.ran[0][1]
    assert stages.ran[0][0] == name
    assert argv == ["--resume", f"out/{name}", "--threads", "2"]
    assert not list((tmp_path / "out").glob("*.old-*"))
    assert run(*FAST, "--config", "p.yaml") == 0


@pytest.mark.parametrize("name", ["logits", "evaluate"])
def test_the_other_stages_continue_by_the_same_command(stages, tmp_path, name):
    stages.fail = name
    assert run(*FAST) == 2
    (tmp_path / "out" / name).mkdir(exist_ok=True)
    stages.fail, _ = None, stages.names()
    assert run(*FAST) == 0
    assert stages.names()[0] == name and not list((tmp_path / "out").glob("*.old-*"))


def test_from_runs_a_stage_and_those_after_it(stages, tmp_path):
    assert run(*FAST) == 0
    stages.names()
    assert run(*FAST, "--from", "pretrain") == 0
    assert stages.names() == ["pretrain", "evaluate", "report"]
    assert (tmp_path / "out/pretrain.old-1").is_dir()
    command = json.loads((tmp_path / "out/pipeline.json").read_text())["command"]
    assert "--from" not in command and "--tokens 8192" in command


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(stages, tmp_path, capsys):
    assert run(*FAST, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert shown.count(": run (not done yet)\n  python -m slm_ray.") == 5
    assert stages.ran == [] and not (tmp_path / "out").exists()
    assert run(*FAST) == 0
    stages.names()
    before = (tmp_path / "out/pipeline.json").read_text()
    capsys.readouterr()
    assert run(*FAST, "--params", "0.5", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "search: run (its options or inputs have changed)" in shown and "logits: skip" in shown
    assert "pretrain: run (a stage that it reads is run)" in shown and "is moved to out/pretrain.old-1" in shown
    assert stages.ran == [] and (tmp_path / "out/pipeline.json").read_text() == before


def test_every_mistake_in_the_file_is_listed_with_its_path(stages, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text(
        "tokens: 300k\ndistil: full\nsearch:\n  trials: many\n  spce: fine\nlogits:\n  tokens: 5k\n  k: 0\n"
        "pretrain:\n  batch-size: 0\n  student: x\n  distill: top-k\nevaluate:\n  documents: both\n"
    )
    assert run("--config", "p.yaml") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: p.yaml: 8 mistakes:\n")
    for said in (
        "distil: no such section or option; did you mean 'distill'?",
        "search.trials: 'many' is not a number",
        "search.spce: no such option; did you mean 'space'?", "logits.tokens: comes from pretrain.tokens; leave it out",
        "logits.k: must be at least 1, got 0", "pretrain.batch_size: must be at least 1, got 0",
        "pretrain.student: comes from the search's winners; leave it out", "evaluate.documents: 'both' is not one of",
    ):  # fmt: skip
        assert f"  - {said}" in shown
    assert stages.ran == []


@pytest.mark.parametrize(
    "text, said",
    [
        ("[1, 2]", "p.yaml must hold sections and options, got list"),
        ("search: 3", "search: must hold options, got 3"),
        ("logits: {k: 4}\npretrain: {distill: full}", "logits: pretrain.distill full reads no store"),
        ("pretrain: {tokens: 5}", "pretrain: --tokens 5 is below one step"),
        ("pretrain: {distill: top-k, loss: reverse_kl}", "pretrain.loss: "),
        ("search: {algorithm: ga}", "search: --algorithm ga takes one objective"),
    ],
)
def test_other_mistakes_are_found_before_anything_runs(stages, tmp_path, capsys, text, said):
    (tmp_path / "p.yaml").write_text(text)
    assert run("--config", "p.yaml") == 2
    assert said in capsys.readouterr().err and stages.ran == []


def test_flags_come_over_the_file_and_sections_over_common_options(stages, tmp_path):
    (tmp_path / "p.yaml").write_text(
        "teacher: a\ntokens: 8192\npretrain: {tokens: 12288, distill: none}\nsearch: {teacher: b}\n"
    )
    assert run("--config", "p.yaml", "--tokens", "16384") == 0
    given = {name: " ".join(argv) for name, argv in stages.ran}
    assert "--teacher b" in given["search"] and "--teacher a" in given["pretrain"]
    assert "--tokens 16384" in given["pretrain"] and "--distill none" in given["pretrain"]


@pytest.mark.slow
def test_a_whole_pipeline_in_one_process(one_ray, tmp_path, monkeypatch, capsys):
    tiny = make_tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(f"""
teacher: {tiny.teacher.name}
data: {tiny.corpus.name}
out: run
search:
  {{space: {tiny.space.name}, params: 0.4..0.9, trials: 8, population: 4, sequence_length: 32, calibration_tokens: 128,
  held_out_tokens: 128, stages: none, importance_steps: 1, importance_tokens: 64, workers: 1, precision: fp32,
  tracker: none}}
logits: {{k: 4, workers: 1}}
pretrain:
  {{tokens: 512, sequence_length: 32, batch_size: 4, eval_tokens: 128, distill: top-k-tail, precision: fp32, threads: 1,
  tracker: none}}
evaluate: {{precision: fp32, threads: 1}}
""")
    assert run_command(main, ["--config", "p.yaml"]) == 0, capsys.readouterr().err
    models = json.loads((tmp_path / "run/evaluate/evaluate.json").read_text())["models"]
    rows = {model["name"]: model["text"][0] for model in models}
    trained = json.loads((tmp_path / "run/pretrain/result.json").read_text())["models"][0]
    # The evaluation reads the tokens that training was measured on, and finds the same.
    assert rows["run/pretrain/winner-0.student/model"]["loss"] == pytest.approx(trained["evals"][-1]["loss"], rel=1e-4)
    assert rows["run/search/winners/0"]["loss"] == pytest.approx(trained["evals"][0]["loss"], rel=1e-4)
    page = (tmp_path / "run/report.html").read_text()
    assert "Pipeline of teacher" in page and "teacher teacher" in page
    capsys.readouterr()
    assert run_command(main, ["--config", "p.yaml"]) == 0
    assert capsys.readouterr().err.count("skip (done, and unchanged)") == 5
