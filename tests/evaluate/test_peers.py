"""What a student that slm_ray exported is held against: teacher, random twin, first layers, the published model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slm_ray.evaluate import subjects
from slm_ray.evaluate.command import main
from slm_ray.evaluate.subjects import published_peer
from slm_ray.models.extraction import extract, save_student
from slm_ray.models.loading import load_student
from slm_ray.records.base import write_record
from slm_ray.records.lineage import Lineage
from slm_ray.records.training import TeacherSource
from slm_ray.runtime.commands import run_command
from tests.models import tiny
from tests.search.tiny_run import make_tokenizer, sentences

UNEVEN = 3  # a seed whose sub-network skips sub-layers


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, a heterogeneous student that says where it comes from, and a text."""
    folder = tmp_path_factory.mktemp("peers")
    text = sentences(400)
    (folder / "corpus.txt").write_text(text)
    tokenizer = make_tokenizer(text)
    teacher = tiny.tiny_model("llama", seed=7, vocab_size=len(tokenizer))
    teacher.save_pretrained(folder / "teacher")
    family = tiny.tiny_family("llama")
    spec = tiny.random_spec(family.architecture(teacher.config), UNEVEN)
    save_student(extract(teacher.state_dict(), teacher.config, family, spec, dtype=torch.float32), folder / "student")
    for name in ("teacher", "student"):
        tokenizer.save_pretrained(folder / name)
    write_record(folder / "student", Lineage(teacher=TeacherSource(name=str(folder / "teacher"), digest="?")))
    return folder


def flags(place, out, *more):
    given = f"--model {place / 'student'} --data {place / 'corpus.txt'} --out {out}"
    sizes = "--eval-tokens 64 --sequence-length 16 --threads 1 --precision fp32 --documents joined"
    return [*given.split(), *sizes.split(), *map(str, more)]


def test_an_exported_student_is_measured_beside_its_peers(place, tmp_path):
    out = tmp_path / "out"
    assert run_command(main, flags(place, out)) == 0
    result = json.loads((out / "evaluate.json").read_text())
    student, teacher = str(place / "student"), str(place / "teacher")
    roles = {row["name"]: row["role"] for row in result["models"]}
    assert roles == {
        student: "model", teacher: "teacher", f"random twin of {student}": "random",
        f"first layers like {student}": "first-n",
    }  # fmt: skip
    assert all(row["of"] == (None if row["role"] == "model" else student) for row in result["models"])
    assert {found["model"] for found in result["differences"]} == set(roles) - {student}
    assert all(found["to"] == student and found["paired"] for found in result["differences"])
    params = {row["role"]: row["params"] for row in result["models"]}
    assert params["random"] == params["model"] >= params["first-n"]
    twin = next(row for row in result["models"] if row["role"] == "random")["folder"]
    whole, fresh = load_student(place / "student", "it").state_dict(), load_student(twin, "twin").state_dict()
    assert {name: value.shape for name, value in whole.items()} == {k: v.shape for k, v in fresh.items()}
    assert not torch.equal(whole["model.embed_tokens.weight"], fresh["model.embed_tokens.weight"])
    first = next(row for row in result["models"] if row["role"] == "first-n")["folder"]
    own = AutoModelForCausalLM.from_pretrained(place / "teacher").state_dict()
    assert all(torch.equal(value, own[name]) for name, value in load_file(f"{first}/model.safetensors").items())


@pytest.mark.parametrize(("more", "roles"), [
    (("--peers", "none"), ["model"]), (("--peers", "teacher"), ["model", "teacher"]),
])  # fmt: skip
def test_only_the_peers_asked_for_are_measured_and_a_teacher_that_was_given_once(place, tmp_path, more, roles):
    given = ["--model", place / "teacher"] if "teacher" in more else []
    assert run_command(main, flags(place, tmp_path / "out", *given, *more)) == 0
    rows = json.loads((tmp_path / "out/evaluate.json").read_text())["models"]
    assert [row["role"] for row in rows] == roles


def test_a_peer_that_cannot_be_had_is_said_and_one_asked_for_is_an_error(place, tmp_path, capsys, monkeypatch):
    lineage = Lineage(teacher=TeacherSource(name="/nowhere/at/all"))
    monkeypatch.setattr(subjects, "find_lineage", lambda folder: lineage)
    assert run_command(main, flags(place, tmp_path / "out")) == 0
    result = json.loads((tmp_path / "out/evaluate.json").read_text())
    assert [row["role"] for row in result["models"]] == ["model", "random"]
    assert len(result["notes"]) == 3 and all("/nowhere/at/all" in note for note in result["notes"])
    assert run_command(main, flags(place, tmp_path / "again", "--peers", "teacher")) == 2
    assert "/nowhere/at/all is not a model folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "teacher, teacher_params, params, found",
    [
        ("EleutherAI/pythia-410m", 405_334_016, 150e6, "EleutherAI/pythia-160m"),
        ("/models/Pythia-1b-deduped", 1_011_781_632, 400e6, "EleutherAI/pythia-410m"),
        ("smollm2-135m", 134_515_008, 94e6, None),
        ("my-own-model", 1e9, 5e8, None),
    ],
)
def test_the_published_peer_is_the_nearest_of_the_family(teacher, teacher_params, params, found):
    assert published_peer(teacher, int(teacher_params), int(params)) == found
