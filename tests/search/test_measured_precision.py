"""A search that chooses its own type to compute in."""

import json

from slm_ray.models import precision
from tests.search.tiny_run import trials_of

OPTIONS = ("--precision", "auto", "--trials", "8", "--reconstruct", "none", "--winners", "1")


def values_of(record):
    return [record["genes"], *(one["value"] for one in record["measurements"].values())]


def test_a_search_goes_on_in_what_it_was_begun_in(command, tiny, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(precision, "bf16_gain", lambda: 3.0)
    assert command(tiny.arguments(run, *OPTIONS)) == 0
    assert "bf16 on cpu (products in bf16" in capsys.readouterr().err
    before = trials_of(run)
    lines = (run / "trials.jsonl").read_text().splitlines(keepends=True)
    (run / "trials.jsonl").write_text("".join(lines[:5]))
    (run / "result.json").unlink()
    monkeypatch.setattr(precision, "bf16_gain", lambda: 0.5)
    assert command(["--resume", run]) == 0
    assert json.loads((run / "inputs.json").read_text())["precision"] == "bf16"
    assert [values_of(record) for record in trials_of(run)] == [values_of(record) for record in before]
    assert json.loads((run / "result.json").read_text())["precision"] == "bf16"
