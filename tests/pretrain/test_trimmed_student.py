"""A student with fewer tokens is distilled from its whole teacher on the student's own ids, online and from a store."""

import json

import pytest

from slm_ray.distill import command as logits
from slm_ray.models.teachers import load_teacher
from slm_ray.models.vocabulary import on_ids_of
from slm_ray.pretrain.command import PRETRAIN
from slm_ray.records.lineage import find_lineage
from slm_ray.runtime.commands import run_command
from slm_ray.tokenizer import main as tokenizer
from tests.pretrain.test_command import arguments
from tests.pretrain.tiny_pretrain import records
from tests.search.tiny_run import LENGTH


@pytest.fixture(autouse=True)
def cache(tiny, monkeypatch):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))


def test_it_learns_from_the_teacher_restricted_to_its_ids(tiny, tmp_path, one_ray, capsys):
    student, model = tmp_path / "student", ["--model", str(tiny.teacher), "--data", str(tiny.corpus), "--general", "0"]
    assert run_command(tokenizer, ["trim", *model, "--keep", "290", "--out", str(student)]) == 0
    run = tmp_path / "run"
    assert run_command(PRETRAIN.main, arguments(tiny, run, "--student", str(student))) == 0
    # The student is the restricted teacher, so there is nothing to learn from it at the first step.
    first = records(run / "student.student" / "steps.jsonl")[0]
    assert first["kd"] < 1e-4 < first["ce"], first
    trained = run / "student.student" / "model"
    assert json.loads((trained / "config.json").read_text())["vocab_size"] == 290
    whole = load_teacher(str(tiny.teacher))
    assert on_ids_of(str(trained), whole).digest == on_ids_of(str(student), whole).digest != whole.digest
    assert find_lineage(trained).spec["vocabulary"]

    store = tmp_path / "store"
    options = ["--teacher", str(tiny.teacher), "--student", str(student), "--data", str(tiny.corpus), "--tokens", "768"]
    more = ["--sequence-length", str(LENGTH), "--k", "290", "--workers", "1", "--out", str(store)]
    assert run_command(logits.main, [*options, *more]) == 0
    shards = capsys.readouterr().out.rsplit("tokens: ", 1)[1].strip().splitlines()[0]
    flags = ["--student", str(student), "--distill", "top-k", "--store", str(store), "--shards", shards]
    given = arguments(tiny, tmp_path / "again", *flags)
    at = given.index("--data")
    assert run_command(PRETRAIN.main, given[:at] + given[at + 2 :]) == 0
    assert records(tmp_path / "again" / "student.student" / "steps.jsonl")[0]["kd"] < 1e-3
