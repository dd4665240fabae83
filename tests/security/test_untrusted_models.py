"""Model folders made by somebody else: nothing of theirs runs, and the user reads one sentence."""

import io
import json
import shutil

import pytest

from slm_ray.runtime.commands import run_command
from tests.security.planted import Planted, change_json, model_folder

CLASSES = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def planted(tmp_path):
    return Planted(tmp_path)


@pytest.fixture
def folder(sound, tmp_path):
    shutil.copy(sound.parent / "corpus.txt", tmp_path / "corpus.txt")
    return shutil.copytree(sound, tmp_path / "model")


def search(folder, out):
    from slm_ray.search.command import main

    return main, ["--teacher", folder, "--data", folder.parent / "corpus.txt", "--params", "0.5", "--out", out]


def pretrain(folder, out):
    from slm_ray.models.starts import build_start

    def main(arguments):
        build_start("student", *arguments, 0, None)
        return 0

    return main, [folder, "the student"]


def evaluate(folder, out):
    from slm_ray.evaluate.command import main

    return main, ["--model", folder, "--data", folder.parent / "corpus.txt", "--eval-tokens", "64",
                  "--sequence-length", "16", "--peers", "none", "--out", out]  # fmt: skip


def extend(folder, out):
    from slm_ray.tokenizer import main

    return main, ["--extend", "--model", folder, "--data", folder.parent / "corpus.txt", "--add", "5", "--out", out]


COMMANDS = [search, pretrain, evaluate]


def status_of(command, folder, capsys, monkeypatch):
    """The exit status and what was said; whoever is asked whether code may run says yes."""
    main, arguments = command(folder, folder.parent / "out")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    status = run_command(main, [str(argument) for argument in arguments])
    return status, capsys.readouterr().err


def pickled_weights(folder, planted):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(planted.zipped())


def pickle_called_safetensors(folder, planted):
    (folder / "model.safetensors").write_bytes(planted.pickled())


def index_of_pickles(folder, planted):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "evil.bin").write_bytes(planted.zipped())
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "evil.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_of_files_elsewhere(folder, planted):
    (folder / "model.safetensors").rename(folder.parent / "evil.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../evil.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def code_of_an_unknown_family(folder, planted):
    change_json(folder / "config.json", model_type="evil", auto_map=CLASSES)
    (folder / "evil.py").write_text(planted.code())


TRAPS = [pickled_weights, pickle_called_safetensors, index_of_pickles, index_of_files_elsewhere,
         code_of_an_unknown_family]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("trap", TRAPS)
def test_nothing_in_a_models_folder_runs(trap, command, folder, planted, capsys, monkeypatch):
    trap(folder, planted)
    status, said = status_of(command, folder, capsys, monkeypatch)
    assert status == 2 and "Traceback" not in said and not planted.went_off
    assert trap is not pickled_weights or "pickle" in said.splitlines()[-1]


def test_code_beside_a_known_family_is_not_run(folder, planted, capsys, monkeypatch):
    change_json(folder / "config.json", auto_map=CLASSES)
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Words", "evil.Words"]})
    (folder / "evil.py").write_text(planted.code())
    status, said = status_of(evaluate, folder, capsys, monkeypatch)
    assert status == 0, said
    assert not planted.went_off


@pytest.mark.parametrize("command", [search, extend])
def test_code_of_a_tokenizer_is_not_run(command, folder, planted, capsys, monkeypatch):
    change_json(
        folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.Words", "evil.Words"]},
    )  # fmt: skip
    (folder / "evil.py").write_text(planted.code())
    status, said = status_of(command, folder, capsys, monkeypatch)
    assert status == 2 and "Traceback" not in said and not planted.went_off
