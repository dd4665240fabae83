import json
import math
import os

import pytest
import yaml
from huggingface_hub import ModelCard

from slm_ray.config.errors import UserError
from slm_ray.report.evaluation_card import BEGIN, END, add_evaluation
from tests.report.synthetic_evaluation import evaluation, task

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


@pytest.fixture
def folder(tmp_path):
    """What slm_ray exports, as far as cards are concerned."""
    (tmp_path / "slm_ray.json").write_text("{}")
    (tmp_path / "README.md").write_text(CARD)
    return tmp_path


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_hub_reads_the_figures_and_their_intervals(folder):
    add_evaluation(folder, evaluation(), "winner-0", "2026-11-25")
    card = ModelCard(card_of(folder))  # raises on metadata it does not understand
    assert card.data.model_name == "winner-0"
    assert (card.data.license, card.data.base_model, card.data.tags) == ("apache-2.0", "org/teacher", ["slm_ray"])
    found = {(one.dataset_type, one.metric_type): one for one in card.data.eval_results}
    assert found["python-docs", "perplexity"].metric_value == 30.0
    assert found["python-docs", "perplexity"].metric_args == {"interval_95": [28.0, 32.0]}
    assert found["python-docs", "perplexity"].dataset_args["tokens_digest"] == "ee55ff66"
    assert found["arc_easy", "acc_norm"].metric_value == 0.5 and found["arc_easy", "acc"].metric_args is None
    assert found["piqa", "acc_norm"].dataset_args["num_few_shot"] == 0
    assert not {one.dataset_type for one in card.data.eval_results} - {"python-docs", "arc_easy", "piqa"}


def test_the_section_shows_the_model_beside_its_peers_only(folder):
    add_evaluation(folder, evaluation(), "winner-0", "2026-11-25")
    section = card_of(folder).partition(BEGIN)[2].partition(END)[0]
    assert "| 0.500 (0.400 to 0.600) | 0.600 (0.500 to 0.700) | 0.250 (0.150 to 0.350) |" in section
    assert "| python-docs | this model | 67.2M | 30.0 | 28.0 to 32.0 | 1.2000 | 1.1600 to 1.2400 |" in section
    assert "org/teacher (teacher)" in section and "| random twin | this model |" in section
    assert "unrelated" not in section and "broken" not in section
    assert "+0.0500 to +0.1500" in section and "within the noise" in section
    assert "aa11bb22cc33dd44" in section and "ee55ff66" in section
    assert "python -m slm\\_ray" not in section and "python -m slm_ray.evaluate --model winner-0" in section
    assert "2026-11-25" in section and "no published peer" in section
    assert "/data/me" not in section
    assert card_of(folder).index("It has some.") < card_of(folder).index(BEGIN)


def test_the_same_again_changes_nothing_and_another_takes_its_place(folder):
    add_evaluation(folder, evaluation(), "winner-0", "2026-11-25")
    once = card_of(folder)
    changed = (folder / "README.md").stat().st_mtime_ns
    add_evaluation(folder, evaluation(), "winner-0", "2026-11-25")
    assert card_of(folder) == once and (folder / "README.md").stat().st_mtime_ns == changed
    (folder / "README.md").write_text(once + "\n## More\n\nWritten by hand.\n")
    other = evaluation()
    other["models"][0]["tasks"] = [task("sciq", 0.75)]
    add_evaluation(folder, json.loads(json.dumps(other)), "winner-0", "2026-11-26")
    text = card_of(folder)
    assert text.count(BEGIN) == text.count(END) == 1 and "sciq" in text and "arc_easy" not in text
    assert text.endswith("## More\n\nWritten by hand.\n") and "It has some." in text
    assert [one.dataset_type for one in ModelCard(text).data.eval_results][-1] == "sciq"


def test_figures_that_are_no_numbers_are_left_out(folder):
    result = evaluation()
    result["models"][0]["text"][0] |= {"perplexity": None, "perplexity_interval": None}
    result["models"][0]["tasks"] = [task("arc_easy", math.nan)]
    result["models"][0] |= {"generation": None, "efficiency": None}
    add_evaluation(folder, result, "winner-0", "2026-11-25")
    found = {one.metric_type for one in ModelCard(card_of(folder)).data.eval_results}
    assert found == {"bits_per_byte"} and "nan" not in card_of(folder).lower()


def test_folders_of_this_machine_stay_here(folder):
    text = json.dumps(evaluation() | {"command": "python -m slm_ray.evaluate"})
    places = {"winner-0": "run/winner-0/model", "python-docs": "x.txt", "org/teacher": "teacher"}
    for name, place in places.items():
        text = text.replace(name, f"/home/me/{place}")
    result = json.loads(text)
    add_evaluation(folder, result, "/home/me/run/winner-0/model", "2026-11-25")
    card = card_of(folder)
    assert "/home/me" not in card and "| x.txt | teacher (teacher) |" in card
    assert ModelCard(card).data.model_name == "winner-0"


def test_a_secret_in_the_command_does_not_reach_the_card(folder):
    result = evaluation() | {"command": "python -m slm_ray.evaluate --model hf_" + "a" * 20}
    add_evaluation(folder, result, "winner-0")
    assert "hf_a" not in card_of(folder)


@pytest.mark.parametrize(
    "spoil, name, says",
    [
        (lambda folder: (folder / "slm_ray.json").unlink(), "winner-0", "was not exported by slm_ray"),
        (lambda folder: (folder / "README.md").unlink(), "winner-0", "has no card (README.md is missing)"),
        (lambda folder: (folder / "README.md").write_text("# Mine\n"), "winner-0", "does not begin with metadata"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), "winner-0", "is not YAML"),
        (lambda folder: (folder / "README.md").write_text(CARD + BEGIN), "winner-0", "not once each"),
        (lambda folder: (folder / "README.md").write_bytes(b"---\n\xff"), "winner-0", "is not UTF-8"),
        (lambda folder: None, "winner-9", "has no figures of winner-9: it has those of winner-0,"),
        (lambda folder: None, "broken", "has no figures of broken"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_changes(spoil, name, says, folder):
    spoil(folder)
    before = (folder / "README.md").read_bytes() if (folder / "README.md").exists() else None
    with pytest.raises(UserError, match=says.replace("(", r"\(").replace(")", r"\)")):
        add_evaluation(folder, evaluation(), name)
    assert before is None or (folder / "README.md").read_bytes() == before


def test_a_folder_that_cannot_be_written_keeps_its_card(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="permission denied"):
        add_evaluation(folder, evaluation(), "winner-0")
    assert card_of(folder) == CARD and len(list(folder.iterdir())) == 2


def test_the_metadata_stays_yaml(folder):
    add_evaluation(folder, evaluation(), "winner-0", "2026-11-25")
    fields = yaml.safe_load(card_of(folder).split("---")[1])
    assert list(fields)[:2] == ["base_model", "library_name"] and fields["model-index"][0]["name"] == "winner-0"
