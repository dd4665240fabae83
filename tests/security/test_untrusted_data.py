"""Checkpoints, stores, shards and YAML made by somebody else: nothing of theirs runs; the user reads one sentence."""

import json
import zlib

import numpy as np
import pytest

from slm_ray.config.digest import digest_json, sha256_bytes
from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards
from slm_ray.distill.store import LogitStore
from slm_ray.runtime.commands import run_command
from tests.distill.store_cases import make_shards as make_tokens
from tests.distill.store_cases import make_store, make_teacher
from tests.pretrain.tiny_pretrain import failure_of, make_job, make_shards, run, write_start
from tests.security.planted import Planted


@pytest.fixture
def planted(tmp_path):
    return Planted(tmp_path)


# A checkpoint.


def rewrite(folder, name, data):
    """Put other bytes into a checkpoint, and whatever belongs to them into its manifest, as somebody who knows how."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest["files"] = [entry for entry in manifest["files"] if entry["name"] != name]
    manifest["files"].append({"name": name, "num_bytes": len(data), "sha256": sha256_bytes(data)})
    (folder / "checkpoint.json").write_text(json.dumps(manifest))


@pytest.fixture
def job(tmp_path):
    return make_job(write_start(tmp_path / "run"), make_shards(tmp_path / "data"), steps=3)


@pytest.fixture
def checkpoint(job, tmp_path):
    return tmp_path / "run/checkpoints/step-00000000"


def test_a_checkpoint_of_pickles_stops_training_in_one_sentence(job, checkpoint, planted):
    rewrite(checkpoint, "model.safetensors", planted.pickled())
    assert "\n" not in failure_of(run(job)).message and not planted.went_off
    (checkpoint / "model.safetensors").unlink()
    rewrite(checkpoint, "pytorch_model.bin", planted.zipped())
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    manifest["files"] = [entry for entry in manifest["files"] if entry["name"] != "model.safetensors"]
    (checkpoint / "checkpoint.json").write_text(json.dumps(manifest))
    assert "pickled weights" in failure_of(run(job)).message and not planted.went_off


@pytest.mark.parametrize("name", ["optimizer.safetensors", "trainer.json"])
def test_a_checkpoints_state_is_never_unpickled(name, job, checkpoint, planted):
    for data in (planted.pickled(), planted.zipped()):
        rewrite(checkpoint, name, data)
        said = failure_of(run(job)).message
        assert name in said and "\n" not in said and not planted.went_off


def test_a_checkpoint_with_files_elsewhere_is_no_checkpoint(job, checkpoint, tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    rewrite(checkpoint, "../../../mine.json", b"{}")
    assert "holds no checkpoint to start from" in failure_of(run(job)).message


# Token shards, and the logit store.


def forge(folder, change):
    """Change a manifest and give it the digest that belongs to it."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["manifest_digest"]
    change(manifest)
    path.write_text(json.dumps({**manifest, "manifest_digest": digest_json(manifest)}))


@pytest.fixture
def shards(tmp_path):
    return make_shards(tmp_path / "data") / "shards"


def test_shards_of_pickled_objects_are_not_read(shards, planted):
    data = planted.array()
    entry = json.loads((shards / "manifest.json").read_text())["shards"][0]
    (shards / f"{entry['name']}.ids.npy").write_bytes(data)
    file = {"bytes": len(data), "crc32": zlib.crc32(data), "sha256": sha256_bytes(data)}
    forge(shards, lambda manifest: manifest["shards"][0].update(ids=file))
    with pytest.raises(UserError, match="is not what was written"):
        TokenShards.open(shards).rows(np.array([0]))
    assert not planted.went_off


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../b"])
def test_shards_outside_of_their_folder_are_refused(name, shards):
    forge(shards, lambda manifest: manifest["shards"][0].update(name=name))
    with pytest.raises(UserError, match="names a file outside of its folder"):
        TokenShards.open(shards)


@pytest.fixture
def store(tmp_path):
    teacher = make_teacher(tmp_path)
    tokens = make_tokens(tmp_path / "tokens", teacher, sequences=4, length=16)
    return make_store(tmp_path / "store", teacher, tokens, kind="top-k", k=4).folder


def test_a_store_with_parts_elsewhere_is_refused(store):
    forge(store, lambda manifest: manifest["parts"][0].update(name="a/../../b"))
    with pytest.raises(UserError, match="names a file outside of its folder"):
        LogitStore.open(store)


def test_a_store_of_pickles_is_not_read(store, planted):
    data = planted.pickled()
    (store / "part-00000.safetensors").write_bytes(data)
    forge(store, lambda manifest: manifest["parts"][0].update(bytes=len(data), sha256=sha256_bytes(data)))
    with pytest.raises(UserError, match="its header is not readable"):
        LogitStore.open(store).signal(np.array([0]))
    assert not planted.went_off


# YAML.


def yaml_commands(path):
    from slm_ray.search.command import main as search
    from slm_ray.studies.command import main as sweep

    return [
        (search, ["--space", path, "--params", "0.5", "--dry-run"]),
        (search, ["--config", path]),
        (sweep, [path, "--dry-run"]),
    ]


def refusals(text, tmp_path, capsys):
    """What the commands that read a user's YAML say of it."""
    path = tmp_path / "evil.yaml"
    path.write_text(text)
    for main, arguments in yaml_commands(str(path)):
        assert run_command(main, arguments) == 2
        yield capsys.readouterr().err


def test_yaml_that_asks_for_python_is_not_obeyed(planted, tmp_path, capsys):
    for text in (planted.yaml(), f"axes:\n  layers: {planted.yaml()}\n"):
        for said in refusals(text, tmp_path, capsys):
            assert "is not valid YAML" in said and "Traceback" not in said and not planted.went_off


def bomb():
    """A page of aliases of aliases that stands for ten to the twelfth values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join([*lines, "name: *a11", "axes: {layers: {per: *a11}}", "seed: *a11"])


@pytest.mark.parametrize("text", [bomb(), "a: &a [1, *a]"], ids=["bomb", "itself"])
def test_yaml_that_grows_without_end_is_refused(text, tmp_path, capsys):
    assert all("is not valid YAML: it" in said for said in refusals(text, tmp_path, capsys))


def test_a_setting_of_a_sweep_is_not_obeyed(planted, capsys):
    from slm_ray.studies.command import main

    assert run_command(main, ["sweeps/debug.yaml", "--set", f"data={planted.yaml()}", "--dry-run"]) == 2
    assert "is not valid YAML" in capsys.readouterr().err and not planted.went_off


def test_a_task_file_s_yaml_tags_are_not_obeyed(planted, tmp_path):
    from slm_ray.evaluate.tasks import define

    (tmp_path / "mine.yaml").write_text(f"task: mine\ndoc_to_text: {planted.yaml()}\n")
    with pytest.raises(UserError, match="no task 'mine'"):
        define("mine", tmp_path)
    assert not planted.went_off
