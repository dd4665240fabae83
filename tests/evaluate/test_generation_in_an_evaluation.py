"""From models to a preference table by the commands: texts and costs are measured, then people rate."""

import json

from slm_ray.evaluate import efficiency
from slm_ray.evaluate.command import main as evaluate
from slm_ray.evaluate.rating.command import main as rate
from slm_ray.runtime.commands import run_command
from slm_ray.runtime.hardware import Effort
from tests.evaluate.rating_run import save_ratings
from tests.models import tiny
from tests.search.tiny_run import make_tokenizer, sentences


def test_from_models_to_a_preference_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(efficiency, "Effort", lambda: Effort(least_runs=2, least_seconds=0))
    tokenizer = make_tokenizer(sentences(40))
    for seed, name in enumerate(("a", "b")):
        tiny.tiny_model("llama", seed=seed, vocab_size=len(tokenizer)).save_pretrained(name)
        tokenizer.save_pretrained(name)
    lines = [{"prompt": f"The {word}", "reference": " keeps the layer", "id": word} for word in ("seed", "student")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = "--model a --model b --data none --references --max-new-tokens 4 --efficiency --peers none --precision fp32"
    arguments = [*given.split(), "--threads", "1", "--out", "run", "--prompts"]
    assert run_command(evaluate, [*arguments, "none.jsonl"]) == 2
    assert "is not a .jsonl or .txt file" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert run_command(evaluate, [*arguments, "prompts.jsonl"]) == 0
    result = json.loads((tmp_path / "run" / "evaluate.json").read_text())
    for row in result["models"]:
        assert row["generation"]["metrics"]["bleu"]["interval"] and row["generation"]["prompts"] == 2
        assert row["efficiency"]["kv_bytes_per_token"] > 0
        assert row["efficiency"]["prefill"] and row["efficiency"]["decode"]
    assert {difference["of"] for difference in result["differences"]} >= {"bleu", "chrf", "seq-rep-4"}
    assert run_command(rate, ["page", "run"]) == 0
    key = json.loads((tmp_path / "run" / "rating_key.json").read_text())
    assert key["models"] == [row["name"] for row in result["models"]]
    save_ratings(tmp_path / "ann.json", key["page"], "Ann", {entry["item"]: "left" for entry in key["items"]})
    assert run_command(rate, ["table", "run", "ann.json"]) == 0
    [pair] = json.loads((tmp_path / "run" / "preferences.json").read_text())["pairs"]
    assert pair["ratings"] == len(key["items"]) > 0
