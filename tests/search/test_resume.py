"""A search whose driver, worker or Ray head was killed: nothing repeated, nothing lost, the same front."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest

from tests.search.processes import kill_below, wait_until
from tests.search.tiny_run import TRIALS, lines_of, outcome_of, start, trials_of
from tests.search.without_ray import run_without_ray


@pytest.fixture(scope="module")
def battered(tiny, search, finished, tmp_path_factory):
    """A run that loses a worker and then its driver, then Ray's head, and then finishes; with what was seen."""
    run = tmp_path_factory.mktemp("battered") / "run"

    process = start(tiny, tiny.arguments(run))
    killed_workers: list[int] = []

    def worker_killed() -> bool:
        if len(lines_of(run)) >= 2:
            killed_workers.extend(kill_below(process.pid, "ray::ResourceTrainable"))
        return bool(killed_workers)

    wait_until(worker_killed, 400, "two trials and a worker")
    before = len(lines_of(run))
    wait_until(lambda: len(lines_of(run)) >= before + 3, 400, "three more trials after a worker died")
    process.kill()
    process.communicate()
    after_driver = lines_of(run)
    torn = (run / "trials.jsonl").open("a")
    torn.write('{"trial": 7, "generation": 1, "orig')  # as a kill in the middle of a write leaves it
    torn.close()

    process = start(tiny, ["--resume", str(run)], start_new_session=True)
    wait_until(lambda: len(lines_of(run)) > len(after_driver), 400, "one more trial after the driver died")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    interrupted = process.communicate(timeout=400)[1]
    after_interrupt = lines_of(run)
    interrupt_status = process.returncode

    process = start(tiny, ["--resume", str(run)])
    wait_until(lambda: len(lines_of(run)) > len(after_interrupt), 400, "one more trial after the interruption")
    assert kill_below(process.pid, "gcs_server")
    output, errors = process.communicate(timeout=400)
    after_head = lines_of(run)

    status = search(["--resume", str(run)])
    return SimpleNamespace(
        run=run, after_driver=after_driver, after_interrupt=after_interrupt, interrupt_status=interrupt_status,
        interrupted=interrupted, after_head=after_head, head_status=process.returncode, head_output=output,
        head_errors=errors, status=status,
    )  # fmt: skip


@pytest.mark.slow
def test_each_blow_came_in_the_middle(battered):
    lengths = [len(battered.after_driver), len(battered.after_interrupt), len(battered.after_head), TRIALS]
    assert lengths == sorted(set(lengths)) and lengths[0] > 0


@pytest.mark.slow
def test_ctrl_c_ends_the_command_in_one_sentence(battered):
    assert battered.interrupt_status == 130
    assert "Traceback" not in battered.interrupted
    assert battered.interrupted.splitlines()[-1].startswith("interrupted: what was finished is kept")


@pytest.mark.slow
def test_a_dead_head_ends_the_command_in_one_sentence(battered):
    assert battered.head_status == 2
    assert "Traceback" not in battered.head_errors + battered.head_output
    assert "error: Ray's head has died" in battered.head_errors
    assert "--resume" in battered.head_errors.splitlines()[-1]


@pytest.mark.slow
def test_no_finished_trial_is_repeated_or_lost(battered):
    lines = lines_of(battered.run)
    assert lines[: len(battered.after_driver)] == battered.after_driver
    assert lines[: len(battered.after_interrupt)] == battered.after_interrupt
    assert lines[: len(battered.after_head)] == battered.after_head
    records = trials_of(battered.run)
    assert sorted(record["trial"] for record in records) == list(range(TRIALS))
    assert len({record["genes"] for record in records}) == TRIALS


@pytest.mark.slow
def test_the_front_is_that_of_an_uninterrupted_run(battered, finished):
    assert battered.status == 0
    assert outcome_of(battered.run) == outcome_of(finished)
    spent = json.loads((battered.run / "result.json").read_text())["spent"]
    assert spent["resumed"] == len(battered.after_head)
    assert "trials are on record" in (battered.run / "run.log").read_text()


def refuses(search, capsys, *arguments) -> str:
    """The one sentence a command ends with."""
    capsys.readouterr()
    assert search([str(argument) for argument in arguments]) == 2
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


@pytest.mark.slow
def test_a_finished_run_says_so_and_shows_its_summary(finished, search, capsys):
    before = lines_of(finished)
    assert search(["--resume", str(finished)]) == 0
    printed = capsys.readouterr().out
    assert "is finished already" in printed and "Winner 0" in printed
    assert lines_of(finished) == before


@pytest.mark.slow
@pytest.mark.parametrize("flag", [("--seed", "1"), ("--trials", "99"), ("--params", "0.5"), ("--config", "x.yaml")])
def test_options_cannot_be_changed(flag, finished, tmp_path, search, capsys):
    run = unfinished(finished, tmp_path)
    assert flag[0] in refuses(search, capsys, "--resume", run, *flag)
    assert len(lines_of(run)) == 5


@pytest.mark.slow
def test_a_changed_teacher_text_or_space_is_noticed(finished, tiny, tmp_path, search, capsys):
    run = unfinished(finished, tmp_path)
    config = json.loads((run / "config.json").read_text())
    changed = tmp_path / "changed"
    shutil.copytree(tiny.teacher, changed / "teacher")
    from safetensors.torch import load_file, save_file

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
        message = refuses(search, capsys, "--resume", run)
        assert "cannot be resumed" in message and what in message
        assert len(lines_of(run)) == 5


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path, search, capsys):
    assert "holds no run to resume" in refuses(search, capsys, "--resume", tmp_path)
    assert "holds no run to resume" in refuses(search, capsys, "--resume", tmp_path / "missing")


@pytest.mark.slow
def test_a_line_damaged_in_the_middle_is_named(finished, tmp_path, search, capsys, monkeypatch):
    run_without_ray(monkeypatch)
    run = unfinished(finished, tmp_path)
    lines = lines_of(run)
    (run / "trials.jsonl").write_text("".join([lines[0], "{damaged\n", *lines[1:]]))
    message = refuses(search, capsys, "--resume", run)
    assert "trials.jsonl, line 2" in message
