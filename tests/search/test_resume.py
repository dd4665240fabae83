"""A search whose worker or driver was killed or interrupted: nothing repeated, nothing lost, the same front."""

import json
import os
import shutil
import signal

import pytest
from safetensors.torch import load_file, save_file

from tests.search.processes import kill_below, wait_until
from tests.search.tiny_run import TRIALS, lines_of, outcome_of, start, trials_of
from tests.search.without_ray import run_without_ray


@pytest.mark.slow
def test_what_was_killed_or_interrupted_goes_on_to_the_front_of_an_uninterrupted_run(
    tiny, command, finished, tmp_path, capsys
):
    run, lost = tmp_path / "run", []

    def worker_killed():
        if len(lines_of(run)) >= 2:
            lost.extend(kill_below(process.pid, "ray::ResourceTrainable"))
        return lost

    process = start(tiny, tiny.arguments(run), start_new_session=True)
    wait_until(worker_killed, 400, "two trials and a worker")
    before = len(lines_of(run))
    wait_until(lambda: len(lines_of(run)) >= before + 3, 400, "three more trials after a worker died")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    said = process.communicate(timeout=400)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("interrupted: what was finished is kept")
    interrupted = lines_of(run)

    process = start(tiny, ["--resume", str(run)])
    wait_until(lambda: len(lines_of(run)) > len(interrupted), 400, "one more trial after the interruption")
    process.kill()
    process.communicate()
    killed = lines_of(run)
    assert 0 < len(interrupted) < len(killed) < TRIALS and killed[: len(interrupted)] == interrupted
    with (run / "trials.jsonl").open("a") as torn:
        torn.write('{"trial": 7, "generation": 1, "orig')  # as a kill in the middle of a write leaves it

    assert command(["--resume", run]) == 0
    assert lines_of(run)[: len(killed)] == killed
    records = trials_of(run)
    assert sorted(record["trial"] for record in records) == list(range(TRIALS))
    assert outcome_of(run) == outcome_of(finished)
    assert json.loads((run / "result.json").read_text())["spent"]["resumed"] == len(killed)
    assert "trials are on record" in (run / "run.log").read_text()

    capsys.readouterr()
    assert command(["--resume", run]) == 0
    shown = capsys.readouterr().out
    assert "is finished already" in shown and "Winner 0" in shown and len(lines_of(run)) == TRIALS


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_trials_as_if_it_had_had_them(tiny, tmp_path, monkeypatch, command, capsys):
    run_without_ray(monkeypatch)
    few, many, more = tmp_path / "few", tmp_path / "many", ("--reconstruct", "none", "--trials")
    assert command(tiny.arguments(many, *more, "14")) == 0
    assert command(tiny.arguments(few, *more, "8")) == 0
    before = lines_of(few)
    assert "--trials 7 is below the 8" in refuses(command, capsys, "--resume", few, "--trials", "7")
    assert command(["--resume", few, "--trials", "14"]) == 0
    assert lines_of(few)[:8] == before and outcome_of(few) == outcome_of(many)
    assert json.loads((few / "config.json").read_text())["options"]["trials"] == 14
    assert command(["--resume", few, "--trials", "14"]) == 0
    assert "is finished already" in capsys.readouterr().out


def refuses(command, capsys, *arguments) -> str:
    """The one sentence a command ends with."""
    capsys.readouterr()
    assert command(arguments) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err.strip().splitlines()[-1]


def unfinished(finished, tmp_path):
    """A copy of the finished run as it was in the middle."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "environment.json", "inputs.json"):
        shutil.copy(finished / name, run / name)
    (run / "trials.jsonl").write_text("".join(lines_of(finished)[:5]))
    return run


def test_options_cannot_be_changed_nor_a_folder_without_a_run_resumed(finished, tmp_path, command, capsys):
    for flag in (("--seed", "1"), ("--config", "x.yaml")):
        assert flag[0] in refuses(command, capsys, "--resume", finished, *flag)
    for folder in (tmp_path, tmp_path / "missing"):
        assert "holds no run to resume" in refuses(command, capsys, "--resume", folder)


def test_a_changed_teacher_text_or_space_is_noticed(finished, tiny, tmp_path, command, capsys):
    run = unfinished(finished, tmp_path)
    config = json.loads((run / "config.json").read_text())
    changed = tmp_path / "changed"
    shutil.copytree(tiny.teacher, changed / "teacher")
    weights = load_file(changed / "teacher/model.safetensors")
    weights["model.norm.weight"] += 1e-3
    save_file(weights, changed / "teacher/model.safetensors", metadata={"format": "pt"})
    (changed / "corpus.txt").write_text(tiny.corpus.read_text()[2000:])
    (changed / "tiny.yaml").write_text(tiny.space.read_text().replace("step: 8", "step: 16"))
    for option, path, what in (
        ("teacher", changed / "teacher", "its teacher was"),
        ("data", changed / "corpus.txt", "tokens was"),
        ("space", changed / "tiny.yaml", "its space was"),
    ):
        options = config["options"] | {option: str(path)}
        (run / "config.json").write_text(json.dumps(config | {"options": options}))
        message = refuses(command, capsys, "--resume", run)
        assert "cannot be resumed" in message and what in message
        assert len(lines_of(run)) == 5


def test_a_line_damaged_in_the_middle_is_named(finished, tmp_path, command, capsys):
    run = unfinished(finished, tmp_path)
    lines = lines_of(run)
    (run / "trials.jsonl").write_text("".join([lines[0], "{damaged\n", *lines[1:]]))
    message = refuses(command, capsys, "--resume", run)
    assert "trials.jsonl, line 2" in message
