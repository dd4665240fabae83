import json
import shlex

import pytest
import yaml
from synthetic_run import finished_run, make_result, make_trials, write_run

from slm_ray.report import load_run, model_card, summary_text
from slm_ray.report.markdown import code_block, markdown_table, plain
from slm_ray.report.search_page import report_markdown, report_page
from slm_ray.report.steps import load_code, load_command, needs_remote_code, tighter_command
from slm_ray.report.tables import Table


def test_the_summary_says_what_a_person_needs(tmp_path):
    folder = finished_run(tmp_path / "run")
    run = load_run(folder)
    text = summary_text(run)
    assert text.startswith("Winner 0: 93.7M parameters (69.7% of smollm2-135m)")
    for wanted in ("teacher smollm2-135m", "first-n, same size", "random, same size", "importance, same size"):
        assert wanted in text
    assert "1.78× of this" in text and "× worse" in text
    assert "Front: " in text and "3 min 22 s" in text and "162 candidates" in text and "131K tokens" in text
    assert f"open {folder}/report.html" in text and f"{folder}/winners/0" in text
    assert "python -m slm_ray.search --space fine --params 0.52" in text


def test_the_summary_of_an_unfinished_run_offers_to_continue(tmp_path):
    text = summary_text(load_run(write_run(tmp_path / "my run", make_trials(20), None)))
    assert "has not finished" in text and "Best so far" in text
    assert text.splitlines()[-1] == f"Next: python -m slm_ray.search --resume '{tmp_path}/my run'"


@pytest.mark.parametrize(
    "changes", [{"front": [], "winners": []}, {"teacher": None}, {"baselines": []}, {"spent": None}]
)
def test_the_summary_of_a_run_with_missing_parts(tmp_path, changes):
    trials = make_trials(10)
    text = summary_text(load_run(write_run(tmp_path, trials, make_result(trials, **changes))))
    assert "None" not in text and "nan" not in text
    if "front" in changes:
        assert "No model was found" in text


def test_the_tighter_command_replaces_the_budget(tmp_path):
    command = "python -m slm_ray.search --space fine --params 0.7 --out 'my run' --flops=0.5 --seed 3"
    run = load_run(finished_run(tmp_path, 20, command=command))
    assert tighter_command(run) == "python -m slm_ray.search --space fine --seed 3 --params 0.52"
    assert tighter_command(load_run(finished_run(tmp_path / "b", 20, command=None))) is None
    assert tighter_command(load_run(finished_run(tmp_path / "c", 20, command="python 'open"))) is None


def test_loading_code_is_python_even_for_odd_paths():
    path = "a 'b' \"c\" \\d"
    compile(load_code(path, True), "card", "exec")
    words = shlex.split(load_command(path, False))
    assert words[:2] == ["python", "-c"]
    compile(words[2], "command", "exec")
    assert json.dumps(path) in words[2] and "trust_remote_code" not in words[2]


def test_a_saved_model_says_itself_how_it_loads(tmp_path):
    run = load_run(finished_run(tmp_path))
    assert needs_remote_code(run, run.best)
    saved = tmp_path / "winners" / "0"
    saved.mkdir(parents=True)
    (saved / "config.json").write_text("{}")
    assert not needs_remote_code(run, run.best)
    (saved / "config.json").write_text('{"auto_map": {}}')
    assert needs_remote_code(run, run.best)


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_model_card(tmp_path):
    run = load_run(finished_run(tmp_path))
    card = model_card(run, run.best, tokens_digest="feed", date="2026-11-21")
    fields = front_matter(card)
    assert fields["license"] == "apache-2.0" and fields["base_model"] == "smollm2-135m"
    assert fields["library_name"] == "transformers" and "slm_ray" in fields["tags"]
    for wanted in (
        "6cda465ec5bc7e29",
        "aa11bb22cc33dd44",
        "feed",
        "fine",
        f"trial {run.best.trial}",
        "not trained afterwards",
    ):
        assert wanted in card
    assert "python -m slm_ray.search --space fine" in card and "2026-11-21" in card
    assert "trust_remote_code=True" in card and "importance, same size" in card
    assert "trust_remote_code" not in model_card(run, run.best, remote_code=False)


def test_the_summary_tables_and_card_say_that_weights_were_fitted(tmp_path):
    folder = finished_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    entry = next(entry for entry in result["front"] if entry["winner"] == 0)
    after = {"calibration_perplexity": 25.0, "held_out_perplexity": 26.4, "held_out_stderr": 0.7}
    entry["reconstruction"] = {"kept": True, "tokens": 16384, "after": after}
    (folder / "result.json").write_text(json.dumps(result))
    run = load_run(folder)
    card, page = model_card(run, run.best), report_markdown(run)
    assert "with fitted weights" in summary_text(run) and "26.4 ± 0.7" in summary_text(run)
    assert "ridge regression on 16,384 train tokens of" in card and "26.4" in card
    assert "its sub-network, as it was cut out" in card and "its weights are the teacher's own" not in card
    assert "weights fitted on 16,384 train tokens" in page and "26.4 ± 0.7" in page
    assert "As it was exported, with fitted weights and before any training, its perplexity on held-out" in page
    assert "text is 26.4 ± 0.7, " in page and "; as cut out " in page
    assert "<dt>Perplexity</dt><dd><b>26.4 ± 0.7</b>" in report_page(run)
    entry["reconstruction"]["kept"] = False
    (folder / "result.json").write_text(json.dumps(result))
    run = load_run(folder)
    assert "its weights are the teacher's own" in model_card(run, run.best)
    assert "fitted" not in summary_text(run) + report_markdown(run)


def test_the_card_of_another_winner_leaves_out_the_baselines_of_winner_0(tmp_path):
    run = load_run(finished_run(tmp_path))
    other = next(model for model in run.front if model.winner == 1)
    assert "importance" not in model_card(run, other)


def test_a_licence_that_is_not_known_is_not_made_up(tmp_path):
    trials = make_trials(10)
    result = make_result(trials)
    result["teacher"]["licence"] = None
    card = model_card(*(lambda run: (run, run.best))(load_run(write_run(tmp_path, trials, result))))
    assert front_matter(card)["license"] == "other" and "not recorded" in card


def test_folders_of_this_machine_are_not_in_the_card(tmp_path):
    trials = make_trials(10)
    result = make_result(trials)
    result["teacher"]["name"], result["corpus"]["name"] = "/home/me/teacher", "/home/me/texts.jsonl"
    run = load_run(write_run(tmp_path, trials, result))
    card = model_card(run, run.best)
    assert "/home/me" not in card and "teacher (llama)" in card and "texts.jsonl" in card
    assert "base_model" not in front_matter(card)


def test_the_card_survives_missing_parts_and_odd_names(tmp_path):
    trials = make_trials(10)
    result = make_result(trials, teacher=None, corpus=None, budget=None, command=None, baselines=[])
    run = load_run(write_run(tmp_path / "a", trials, result))
    assert "base_model" not in front_matter(model_card(run, run.best))
    result = make_result(trials)
    result["teacher"]["name"] = "x: [y]\n---\n| <b>"
    run = load_run(write_run(tmp_path / "b", trials, result))
    assert front_matter(model_card(run, run.best))["base_model"] == "x: [y] --- | <b>"


def test_markdown_cells_and_fences_cannot_be_broken():
    table = Table("t", ("a|b", "c"), (("x\ny", "<i>"),))
    assert markdown_table(table).splitlines() == ["| a\\|b | c |", "| --- | --- |", "| x y | \\<i\\> |"]
    assert code_block("```", "sh").startswith("````sh")
    assert plain("a_b") == "a\\_b"


def test_the_markdown_report(tmp_path):
    text = report_markdown(load_run(finished_run(tmp_path)))
    assert "![" in text and "(front.png)" in text
    for title in ("The front", "What was spent", "Search progress", "Environment", "Config", "How to reproduce"):
        assert f"## {title}" in text


def test_secrets_reach_no_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    run = load_run(finished_run(tmp_path, 20, command="search --key very-secret-value"))
    assert "very-secret-value" not in report_markdown(run)
    assert "very-secret-value" not in model_card(run, run.best)
