import json

import pytest
import yaml
from huggingface_hub import ModelCard

from slm_ray.config.errors import UserError
from slm_ray.records.data import ExtendedVocabulary
from slm_ray.records.evaluation import EvaluationResult
from slm_ray.records.lineage import Lineage
from slm_ray.report.cards import kind_text, training_card, vocabulary_card, winner_card
from slm_ray.report.evaluation_card import BEGIN, END, add_evaluation
from slm_ray.report.render import code_block, plain, render_markdown
from slm_ray.report.search import load_search
from tests.report.made_evaluation import make_result as make_evaluation
from tests.report.made_search import fitted, make_result, make_trials, write_search
from tests.report.made_training import DATA

NAME = "runs/half/pretrain/winner-0.student/model"
CARD = """---
base_model: org/teacher
library_name: transformers
license: apache-2.0
tags:
- slm_ray
---

# A sub-network

## Limits

It has some.
"""


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def card_of(folder, *changes, number=0, **given):
    trials = make_trials(20)
    result = make_result(trials)
    for change in changes:
        change(result)
    run = load_search(write_search(folder, trials, result))
    member = next(member for member in run.front if member.winner == number)
    return winner_card(run, member, **{"remote_code": True, "date": "2026-11-21"} | given)


# Winners.


def test_the_card_of_a_winner(tmp_path):
    card = card_of(tmp_path)
    fields = front_matter(card)
    assert fields["license"] == "apache-2.0" and fields["base_model"] == "smollm2-135m"
    assert fields["library_name"] == "transformers" and "slm_ray" in fields["tags"]
    for wanted in (
        "6cda465ec5bc7e29", "aa11bb22cc33dd44", "feed", "fine", "not trained afterwards", "slm-ray search --space fine",
        "2026-11-21", "importance, same size", "float32", "| FLOPs of the search | 12T |",
        "its weights are the teacher's own. It",
    ):  # fmt: skip
        assert wanted in card, wanted
    assert "noise until" not in card and "trust_remote_code=True" in card
    assert "importance" not in card_of(tmp_path, number=1)


def test_a_card_tells_why_a_model_needs_a_modelling_file(tmp_path):
    assert "layers differ in size" in card_of(tmp_path) and "`config.per_layer_config`" in card_of(tmp_path)
    assert "`config.num_attention_heads`" in kind_text(True, uniform=False)
    assert "have the same sizes" in kind_text(True, uniform=True)
    assert "trust_remote_code" not in card_of(tmp_path, remote_code=False)


def test_a_card_says_that_weights_were_fitted_and_that_a_ruined_model_is_noise(tmp_path):
    def fit(result):
        for entry in result["front"]:
            entry["reconstruction"] = fitted(26.4, 0.7)

    def ruin(result):
        for entry in result["front"]:
            entry["held_out_perplexity"] *= 100

    card = card_of(tmp_path / "a", fit)
    assert "ridge regression on 16,384 train tokens of python-docs" in card and "| this model | " in card
    assert "the same with the teacher's own weights" in card and "its weights are the teacher's own" not in card
    assert "noise until it is trained" in card_of(tmp_path / "b", ruin)


def test_a_licence_that_is_not_known_is_not_made_up_and_folders_stay_here(tmp_path):
    def unknown(result):
        result["teacher"] |= {"licence": None, "name": "/home/me/teacher"}
        result["corpus"]["name"] = "/home/me/texts.jsonl"

    card = card_of(tmp_path, unknown)
    assert front_matter(card)["license"] == "other" and "not recorded" in card
    assert "/home/me" not in card and "teacher (llama)" in card and "texts.jsonl" in card
    assert "base_model" not in front_matter(card)


def test_odd_names_and_secrets_do_no_harm(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    odd = "x: [y]\n---\n| <b> {{ 7 * 7 }}"

    def change(result):
        result["teacher"]["name"] = odd
        result["command"] = "search --key very-secret-value"

    card = card_of(tmp_path, change)
    assert front_matter(card)["base_model"] == "x: [y] --- | <b> {{ 7 * 7 }}" and "very-secret-value" not in card
    assert "\\<b\\>" in card


def test_markdown_cells_and_fences_cannot_be_broken():
    assert code_block("```", "sh").startswith("````sh") and plain("a_b\n<i>|") == "a\\_b \\<i\\>\\|"
    text = render_markdown("vocabulary.md", new_tokens="5", kind="k", code="a\n\n\n\nb", table=finished_table(),
                           command="c", version="v", day="d")  # fmt: skip
    assert "| a\\|b | c |\n| --- | --- |\n| x y | \\<i\\> |\n" in text and "a\n\n\n\nb" in text


def finished_table():
    from slm_ray.report.content import Table

    return Table("t", ("a|b", "c"), (("x\ny", "<i>"),))


# Trained models, and models with new tokens.

TEACHER = {"name": "org/teacher", "family": "llama", "digest": "d1", "licence": "apache-2.0"}
EVALUATED = {
    "step": 5, "tokens": 100_000, "stderr": 0.05, "bits_per_byte": 1.0, "eval_tokens": 8192, "flops": {},
    "seconds": 1.0,
}  # fmt: skip
TRAINING = {
    "name": "winner-0.student", "start": "student", "student": "winners/0", "grown_from": None,
    "command": "slm-ray pretrain", "slm_ray": "0.1", "params": 67_238_208, "step": 5, "tokens": 100_000,
    "flops": {"own": 5e13, "teacher": 3e13}, "seconds": 100.0, "search_flops": 65e12, "distilled_from": TEACHER,
    "data": DATA,
    "distillation": {"distill": "full", "loss": "kl", "temperature": 2.0, "kd_weight": 0.5, "kd_schedule": "constant"},
    "optimisation": {
        "optimizer": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "warmup": 0.1, "floor": 0.1,
        "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "clip": 1.0, "batch_size": 8, "sequence_length": 512,
        "documents": "separate", "precision": "fp32", "seed": "0",
    },
    "joules": None, "earlier": {"names": ["w.student"], "tokens": 50_000, "flops": 1e13},
    "before": EVALUATED | {"loss": 4.0, "tokens": 0}, "after": EVALUATED | {"loss": 2.6},
}  # fmt: skip


def test_the_card_of_a_trained_model():
    lineage = Lineage.model_validate({"teacher": TEACHER, "trial": 7, "space": {"name": "fine"}, "training": TRAINING})
    card = training_card(lineage, remote_code=False, weights="128 MiB, bfloat16", date="2026-11-21")
    fields = front_matter(card)
    assert fields["base_model"] == "org/teacher" and "distillation" in fields["tags"]
    for wanted in (
        "# winner-0.student, 67.2M parameters", "with the help of org/teacher", "| after training | 2.6000 |",
        "| FLOPs in all | 155T |", "| weights | 128 MiB, bfloat16 |", "| temperature | 2.0 |",
        "trial 7, space fine", "| found by a search |", "the teacher's licence applies", "slm-ray pretrain",
    ):  # fmt: skip
        assert wanted in card, wanted


def test_the_card_of_a_model_with_new_tokens():
    vocabulary = ExtendedVocabulary.model_validate({
        "made_from": "m", "model": "/home/me/runs/half/winners/0", "corpus": "swahili", "corpus_digest": "c1",
        "first_new": 49152, "new_tokens": 8000, "rows": 57152, "bytes_per_token": {"before": 2.31, "after": 4.02},
    })  # fmt: skip
    lineage = Lineage.model_validate({"teacher": TEACHER})
    card = vocabulary_card(vocabulary, lineage, remote_code=True, command="slm-ray t")
    assert (front_matter(card)["license"], front_matter(card)["base_model"]) == ("apache-2.0", "org/teacher")
    for said in ("# A language model with 8,000 new tokens", "| bytes per token now | 4.02 |",
                 "| text | swahili, digest c1 |", "not trained afterwards", "slm-ray t"):  # fmt: skip
        assert said in card, said
    assert "/home/me" not in card
    other = vocabulary.model_copy(update={"model": "org/model"})
    assert "org/model" in vocabulary_card(other, Lineage(), remote_code=False)


# Evaluations in a card.


@pytest.fixture
def folder(tmp_path):
    """What slm_ray exports, as far as cards are concerned."""
    (tmp_path / "slm_ray.json").write_text("{}")
    (tmp_path / "README.md").write_text(CARD)
    return tmp_path


def evaluated(**changes):
    return EvaluationResult.model_validate(make_evaluation(**changes))


def read(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_hub_reads_the_figures_and_their_intervals(folder):
    add_evaluation(folder, evaluated(), NAME, "2026-11-25")
    card = ModelCard(read(folder))  # raises on metadata it does not understand
    assert card.data.model_name == "winner-0.student"
    assert (card.data.license, card.data.base_model, card.data.tags) == ("apache-2.0", "org/teacher", ["slm_ray"])
    found = {(one.dataset_type, one.metric_type): one for one in card.data.eval_results}
    assert found["python-docs", "perplexity"].metric_value == pytest.approx(24.5325)
    assert found["python-docs", "perplexity"].dataset_args["tokens_digest"] == "tokens-python-docs"
    assert found["piqa", "acc"].dataset_args["num_few_shot"] == 0
    assert len(found["piqa", "acc"].metric_args["interval_95"]) == 2
    assert list(front_matter(read(folder)))[:2] == ["base_model", "library_name"]


def test_the_section_shows_the_model_beside_its_peers_only(folder):
    add_evaluation(folder, evaluated(), NAME, "2026-11-25")
    section = read(folder).partition(BEGIN)[2].partition(END)[0]
    assert "| python-docs | this model | 24.5 |" in section and "smollm2-135m (teacher)" in section
    assert "| random twin | this model |" in section and "within the noise" in section
    assert "tokens-python-docs" in section and "2026-11-25" in section and "could not be had" in section
    assert "slm-ray evaluate --model a" in section and "runs/half" not in section
    assert read(folder).index("It has some.") < read(folder).index(BEGIN)


def test_the_same_again_changes_nothing_and_another_takes_its_place(folder):
    add_evaluation(folder, evaluated(), NAME, "2026-11-25")
    once, written = read(folder), (folder / "README.md").stat().st_mtime_ns
    add_evaluation(folder, evaluated(), NAME, "2026-11-25")
    assert read(folder) == once and (folder / "README.md").stat().st_mtime_ns == written
    (folder / "README.md").write_text(once + "\n## More\n\nWritten by hand.\n")
    add_evaluation(folder, evaluated(domains=("books",)), NAME, "2026-11-26")
    text = read(folder)
    assert text.count(BEGIN) == text.count(END) == 1 and "2026-11-26" in text and "2026-11-25" not in text
    assert text.endswith("## More\n\nWritten by hand.\n") and "It has some." in text


def test_figures_that_are_no_numbers_are_left_out(folder):
    result = make_evaluation()
    result["models"][0] |= {"generation": None, "efficiency": None, "tasks": []}
    for text in result["models"][0]["text"]:
        text |= {"perplexity": None, "perplexity_interval": None}
    add_evaluation(folder, EvaluationResult.model_validate(result), NAME, "2026-11-25")
    assert {one.metric_type for one in ModelCard(read(folder)).data.eval_results} == {"bits_per_byte"}


def test_folders_and_secrets_of_this_machine_stay_here(folder):
    text = json.dumps(make_evaluation()).replace("runs/half", "/home/me/runs")
    text = text.replace('"python-docs"', '"/home/me/x.txt"')
    result = json.loads(text) | {"command": "slm-ray evaluate --model hf_" + "a" * 20}
    add_evaluation(folder, EvaluationResult.model_validate(result), NAME.replace("runs/half", "/home/me/runs"))
    assert "/home/me" not in read(folder) and "| x.txt | this model |" in read(folder) and "hf_a" not in read(folder)
    assert ModelCard(read(folder)).data.model_name == "winner-0.student"


@pytest.mark.parametrize(
    ("spoil", "name", "says"),
    [
        (lambda folder: (folder / "slm_ray.json").unlink(), NAME, "was not exported by slm_ray"),
        (lambda folder: (folder / "README.md").unlink(), NAME, r"has no card \(README.md is missing\)"),
        (lambda folder: (folder / "README.md").write_text("# Mine\n"), NAME, "does not begin with metadata"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), NAME, "is not YAML"),
        (lambda folder: None, "winner-9", "has no figures of winner-9: it has those of runs"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_nothing_changes(spoil, name, says, folder):
    spoil(folder)
    before = (folder / "README.md").read_bytes() if (folder / "README.md").exists() else None
    with pytest.raises(UserError, match=says):
        add_evaluation(folder, evaluated(), name)
    assert before is None or (folder / "README.md").read_bytes() == before
