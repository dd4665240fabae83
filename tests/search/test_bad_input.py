"""What a user gets for a mistake: one sentence on standard error, status 2, no traceback, and nothing lost."""

import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from slm_ray.runtime import session
from slm_ray.runtime.commands import run_command
from slm_ray.search.command import main
from tests.search.processes import wait_until
from tests.search.tiny_run import lines_of


@pytest.fixture
def refuses(tiny, tmp_path, monkeypatch, capsys):
    """Run the command with these arguments after good ones; gives the sentence it ends with."""

    def run(*arguments: object, out=None) -> str:
        monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))
        status = run_command(main, tiny.arguments(out or tmp_path / "run", *map(str, arguments)))
        printed = capsys.readouterr()
        assert status == 2
        assert printed.out == "" and "Traceback" not in printed.err
        sentence = printed.err.splitlines()[printed.err.splitlines().index(find_error(printed.err)) :]
        assert all(line.startswith("  - ") for line in sentence[1:])  # the mistakes of one file, if there are several
        return "\n".join(sentence)

    return run


def find_error(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    return errors[0]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--space", "fin"], "did you mean 'fine'?"),
        (["--objectives", "perplexity,parms"], "did you mean 'params'?"),
        (["--objectives", "perplexity"], "nsga2 takes two objectives"),
        (["--algorithm", "ga"], "ga takes one objective"),
        (["--trails", "9"], "did you mean '--trials'?"),
        (["--trials", "many"], "--trials: 'many' is not a number"),
        (["--params", "0.5", "--flops", "0.5"], "--params and --flops are both given"),
        (["--params", "0.9..0.5"], "0.9..0.5"),
        (["--params", "60001..60010"], "60,624"),  # the nearest that can be reached
        (["--stages", "512,128"], "ascending"),
        (["--sequence-length", "128"], "64 positions"),
        (["--calibration-tokens", "16"], "below one sequence"),
        (["--device", "cuda"], "no GPU that torch can use: give --device cpu"),
        (["--screen", "4", "--algorithm", "random"], "picks among offspring, and --algorithm random makes none"),
        (["--order", "tailor"], "'taylor'"),
        (["--teacher-text", "1"], "--teacher-text: must be at most 0.9"),
        (["--teacher", "nowhere"], "no folder, no .gguf file and no hub id"),
        (["--teacher", "nowhere.gguf"], "does not exist"),
        (["--teacher", "some-owner/some-model"], "network"),
        (["--data", "some-owner/some-data"], "network"),
        (["--data", "python-doc"], "did you mean 'python-docs'?"),
        (["--config", "nowhere.yaml"], "does not exist"),
        (["--finalists", "1", "--winners", "2"], "--finalists 1 is below --winners 2"),
        (["--finalists", "2", "--finalist-tokens", "20"], "is below one sequence of --sequence-length 32"),
        (["--other-data", "nowhere.txt"], "nowhere.txt"),
        (["--other-data", "python-docs", "--other-tokens", "4"], "is below one sequence of --sequence-length 32: give"),
    ],
)
def test_wrong_options(arguments, says, refuses):
    assert says in refuses(*arguments)


def test_a_typo_is_found_before_anything_heavy_is_imported():
    script = (
        "import sys\nfrom slm_ray.search.command import SEARCH\n"
        "for words in ('--space fin', '--teacher ./nowhere', '--params 1.2', '--algorithm nsga'):\n"
        "    try: SEARCH.main(words.split())\n    except ValueError: pass\n"
        "print(sorted({'torch', 'ray', 'pymoo', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_corpus_shorter_than_one_sequence(tiny, tmp_path, refuses):
    corpus = tmp_path / "short.txt"
    corpus.write_text(tiny.corpus.read_text()[:400])
    message = refuses("--data", corpus, "--sequence-length", "64", "--calibration-tokens", "64")
    assert "short.txt" in message and "--sequence-length" in message
    assert not lines_of(tmp_path / "run")


def test_a_folder_that_cannot_be_written(tmp_path, refuses):
    (tmp_path / "file").write_text("")
    assert "not a folder" in refuses(out=tmp_path / "file" / "run")
    assert "/proc" in refuses(out="/proc/slm_ray/run")  # nobody may write there, root included


def test_a_folder_that_is_in_use_or_holds_something_else(finished, tiny, tmp_path, refuses):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert "another config" in refuses("--seed", "5", out=finished)
    assert "--resume" in refuses("--seed", "5", out=finished)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    assert "not empty" in refuses(out=tmp_path / "notes")
    assert (tmp_path / "notes/mine.txt").read_text() == "mine"


def test_ray_that_cannot_start(refuses, monkeypatch, tmp_path):
    import ray

    def init(**_options):
        raise ConnectionError("the raylet did not come up\nand a second line")

    monkeypatch.setattr(ray, "init", init)
    assert "Ray could not start on this machine (the raylet did not come up)" in refuses()
    assert not lines_of(tmp_path / "run")


@pytest.mark.slow
def test_a_cluster_that_does_not_answer(refuses):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = time.monotonic()
    assert f"the Ray cluster at 127.0.0.1:{port} could not be joined" in refuses("--address", f"127.0.0.1:{port}")
    assert time.monotonic() - begin < 90


def test_a_joined_cluster_that_falls_silent_counts_as_lost(monkeypatch):
    monkeypatch.setattr(session, "_PATIENCE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        ray = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address=address))
        answers = session._head_answers(ray)
        assert answers()
    wait_until(lambda: not answers(), 10, "the silence is noticed")


def test_debug_shows_the_traceback(tiny, tmp_path, capsys):
    assert run_command(main, tiny.arguments(tmp_path / "run", "--space", "fin", "--debug")) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "error: unknown search space 'fin'" in printed
