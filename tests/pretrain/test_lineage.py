"""Lineages and cards of trained models, from records alone."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from slm_ray.pretrain.inputs import search_flops
from slm_ray.pretrain.lineage import description_files, trained_lineage
from slm_ray.records.base import RecordFile, write_record
from slm_ray.records.lineage import Lineage
from slm_ray.records.run import RunRecord
from slm_ray.records.training import (
    EngineFacts,
    MeasuredEnergy,
    Origin,
    ResourceUsage,
    SpentFlops,
    TrainBegin,
    TrainedModel,
    TrainEnd,
    TrainEvaluation,
    TrainStatus,
)

TEACHER = {"name": "org/teacher", "family": "llama", "digest": "d1", "licence": "apache-2.0"}
SEARCHED = Lineage.model_validate(
    {"teacher": TEACHER, "trial": 17, "space": {"name": "fine"}, "genes": "g", "command": "slm_ray.search"}
).to_json()
DATA = {
    "corpus": "/home/somebody/corpus.txt", "corpus_digest": "c1", "training_tokens": "t1", "different_tokens": 50_000,
    "held_out_tokens": "h1", "tokenizer": "k1", "logit_store": None,
}  # fmt: skip
OPTIONS = {"student": "winners/0", "distill": "full", "temperature": 2.0, "storage": "s3://host/x"}
COMMAND = "python -m slm_ray.pretrain --student winners/0 --storage s3://me:secretword@host/x"


def evaluation(step, loss):
    flops = SpentFlops(own=1e12 * step, teacher=5e11 * step)
    return TrainEvaluation(step=step, tokens=1000 * step, loss=loss, stderr=0.05, bits_per_byte=loss / 3,
                           eval_tokens=8192, flops=flops, seconds=2.0 * step)  # fmt: skip


def write_model(run, name, **changes):
    folder = run / name
    folder.mkdir(parents=True)
    write_record(run, RunRecord(stage="pretrain", command=COMMAND, options=OPTIONS))
    origin = Origin(lineage=SEARCHED, student="winner-0", distilled_from=TEACHER, data=DATA)
    known = {"start": "student", "source": "x", "params": 1000, "search_flops": 3e12, "origin": origin,
             "flops_per_token": 1.0, "flops_exact": True, "architecture": None}  # fmt: skip
    write_record(folder, TrainedModel(**known | changes))
    with RecordFile(folder / "evals.jsonl") as file:
        for step in (0, 5, 10):
            file.append(evaluation(step, 5.0 - 0.1 * step))
    return folder


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "run", "winner-0.student")


def files(folder, tmp_path, step=10, **config):
    exported = tmp_path / "exported"
    exported.mkdir(exist_ok=True)
    (exported / "config.json").write_text(json.dumps(config))
    return description_files(exported, trained_lineage(folder, step))


def test_the_students_lineage_travels_with_its_training(model):
    found = trained_lineage(model, 10)
    assert found.trial == 17 and found.teacher.to_json() == TEACHER and found.search_flops == 3e12
    training = found.training.to_json()
    assert training["tokens"] == 10_000 and training["flops"] == {"own": 1e13, "teacher": 5e12, "capture": 0.0}
    assert training["before"]["loss"] == 5.0 and training["after"]["loss"] == 4.0
    assert training["distillation"]["temperature"] == 2.0 and training["data"]["held_out_tokens"] == "h1"


def test_the_card_says_all_that_a_reader_must_know(model, tmp_path):
    written = files(model, tmp_path)
    card = written["README.md"]
    fields = yaml.safe_load(card.split("---")[1])
    assert fields["license"] == "apache-2.0" and fields["base_model"] == "org/teacher"
    assert ModelCard(card).data.tags == ["slm_ray", "text-generation", "distillation"]
    for said in (
        "with the help of org/teacher", "| teacher's licence | apache-2.0 |", "corpus.txt, digest c1", "| t1 |",
        "| h1 |",
        "trial 17, space fine", "| after training | 4.0000 | 3.9020 to 4.0980 | 54.6 | 49.5 to 60.2 | 1.333 |",
        "| before training | 5.0000 |", "| FLOPs in all | 18T |", "| temperature | 2.0 |", "| optimizer | adamw |",
        "python -m slm_ray.pretrain --student winners/0", "the teacher's licence applies", "## Limits",
    ):  # fmt: skip
        assert said in card, said
    assert "/home/somebody" not in card and "secretword" not in card + written["slm_ray.json"]
    assert "trust_remote_code=True)" not in card
    assert "trust_remote_code=True)" in files(model, tmp_path, auto_map={})["README.md"]


def test_the_card_says_what_auto_came_to_and_what_it_took(model, tmp_path):
    runs = EngineFacts(engine="deepspeed", optimizer="AdamW", precision="bf16", weights="float32", zero=2)
    usage = ResourceUsage(cpu_percent=1.0, gpu_percent=None, memory_bytes=1, gpu_memory_bytes=None)
    energy = MeasuredEnergy(joules=7.2e6, source="RAPL", from_step=0)
    end = TrainEnd(step=10, tokens=1, flops=SpentFlops(), seconds=1.0, best=None, usage=usage, mfu=None, energy=energy)
    write_record(model, TrainStatus(begin=TrainBegin(step=0, runs=runs, micro_batch=1), end=end))
    card = files(model, tmp_path)["README.md"]
    assert "| precision | bf16 |" in card and "| zero | 2 |" in card and "| energy | 2 kWh |" in card


def test_a_model_of_unknown_origin_has_a_card_too(tmp_path):
    origin = Origin(lineage={}, student="m", distilled_from=None, data=DATA)
    folder = write_model(tmp_path / "old", "m.student", origin=origin, search_flops=None)
    card = files(folder, tmp_path)["README.md"]
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    assert "| FLOPs, the search's | not known |" in card and "no teacher" in card
    assert "base_model" not in card


def test_growth_counts_the_stages_before(tmp_path):
    first = write_model(tmp_path / "run", "m.layers1", start="first-n", search_flops=0.0)
    write_model(first.parent, "m.layers3", start="grown", grown_from="m.layers1", search_flops=0.0)
    last = write_model(first.parent, "m.layers4", start="grown", grown_from="m.layers3", search_flops=0.0)
    training = trained_lineage(last, 10).training.to_json()
    assert training["earlier"] == {"names": ["m.layers1", "m.layers3"], "tokens": 20_000, "flops": 3e13}
    card = files(last, tmp_path)["README.md"]
    assert "| trained before, as | m.layers1, m.layers3 |" in card and "| FLOPs in all | 45T |" in card


def test_training_a_trained_model_again_counts_both(tmp_path, model):
    before = trained_lineage(model, 10)
    origin = Origin(lineage=before.to_json(), student="m", distilled_from=None, data=DATA)
    again = write_model(tmp_path / "again", "m.student", origin=origin)
    training = trained_lineage(again, 10).training.to_json()
    assert training["earlier"] == {"names": ["winner-0.student"], "tokens": 10_000, "flops": 1.5e13}


@pytest.mark.parametrize("known, cost", [(3e12, 3e12), (None, None)])
def test_what_a_trained_models_search_cost_is_known_or_not(known, cost, tmp_path):
    model = write_model(tmp_path / "run", "m.student", search_flops=known)
    (tmp_path / "result.json").write_text("{}")
    exported = tmp_path / "a" / "b"
    exported.mkdir(parents=True)
    write_record(exported, trained_lineage(model, 10))
    assert search_flops(str(exported)) == cost
