"""Weights fitted to the teacher's layers after a search: whose, what is kept, and that a killed run goes on."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from slm_ray.models.reconstruction import reconstruction_flops
from slm_ray.records.cost import flops_per_token
from slm_ray.records.subnet import SubnetSpec
from slm_ray.runtime.commands import run_command
from slm_ray.search import reconstruction
from slm_ray.search.command import main
from tests.models.tiny import tiny_config, tiny_family
from tests.search.tiny_run import outcome_of, trials_of
from tests.search.without_ray import run_without_ray


def few(tiny, run, *more):
    return tiny.arguments(run, "--trials", "8", "--winners", "2", "--reconstruct-tokens", "2048", *more)


def result_of(run):
    return json.loads((run / "result.json").read_text())


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A folder with a run whose winners are fitted and one whose winners are not; and what was told while fitting."""
    folder, told = tmp_path_factory.mktemp("runs"), []

    def watched(*arguments, on_part, **options):
        def note(members):
            told.append(members)
            on_part(members)

        return reconstruction.Reconstructor(*arguments, on_part=note, **options)

    with pytest.MonkeyPatch.context() as patch:
        run_without_ray(patch)
        patch.setenv("SLM_RAY_CACHE", str(tiny.cache))
        patch.setattr("slm_ray.search.run.Reconstructor", watched)
        assert run_command(main, few(tiny, folder / "fitted")) == 0
        assert run_command(main, few(tiny, folder / "plain", "--reconstruct", "none")) == 0
    return folder, told


@pytest.mark.slow
def test_winners_are_fitted_and_the_front_is_measured_as_it_was(runs):
    folder, told = runs
    # None yet; two members, four layers; then each is measured, which is the rest of its time.
    assert told == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 1.8, 2.0])
    fitted, plain = result_of(folder / "fitted"), result_of(folder / "plain")
    trials = trials_of(folder / "fitted")
    measured = {trial["trial"]: trial["measurements"]["perplexity"]["value"] for trial in trials}
    for mine, other in zip(fitted["front"], plain["front"], strict=True):
        fit = mine.pop("reconstruction", None)
        assert (fit is not None) == (mine["winner"] is not None)
        if fit:  # the search has measured it before
            assert fit["before"]["calibration_perplexity"] == round(measured[mine["trial"]], 4)
        assert mine == {name: value for name, value in other.items() if name != "reconstruction"}
    spent = fitted["spent"]["reconstruction"]
    assert spent["models"] == 2 and plain["spent"]["reconstruction"] is None
    # Unit scores are counted where they were made; here the second run read them from the cache.
    assert fitted["spent"]["flops"] - plain["spent"]["flops"] >= spent["flops"] > 0
    assert fitted["spent"]["forward_tokens"] - plain["spent"]["forward_tokens"] - spent["tokens"] in (0, 3 * 64)
    assert "reconstruction" in fitted["spent"]["seconds"]
    models = [AutoModelForCausalLM.from_pretrained(folder / run / "winners/0") for run in ("fitted", "plain")]
    states = [model.state_dict() for model in models]
    assert {key: tensor.shape for key, tensor in states[0].items()} == {k: v.shape for k, v in states[1].items()}
    assert any(not torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    cards = [(folder / run / "winners/0/README.md").read_text() for run in ("fitted", "plain")]
    assert "ridge regression on 2,048 train tokens" in cards[0] and "weights are the teacher's own. It" in cards[1]
    lineage = json.loads((folder / "fitted/winners/0/slm_ray.json").read_text())
    assert lineage["reconstruction"]["kept"] and lineage["reconstruction"]["tokens"] == 2048


@pytest.mark.slow
def test_the_whole_front_can_be_fitted(command, tiny, tmp_path):
    assert command(few(tiny, tmp_path / "run", "--reconstruct", "all", "--winners", "1")) == 0
    result = result_of(tmp_path / "run")
    assert all(entry["reconstruction"]["tokens"] == 2048 for entry in result["front"])
    assert result["spent"]["reconstruction"]["models"] == len(result["front"]) > 1
    assert len(list((tmp_path / "run/winners").iterdir())) == 1


@pytest.mark.slow
def test_a_killed_run_fits_only_what_is_missing(runs, command, tiny, tmp_path, monkeypatch):
    real, calls = reconstruction.reconstruct, []

    def dies_at_the_second(*arguments):
        calls.append(len(arguments[3]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(reconstruction, "_GROUP_BYTES", 1)  # one model at a time
    monkeypatch.setattr(reconstruction, "reconstruct", dies_at_the_second)
    run = tmp_path / "run"
    assert command(few(tiny, run)) == 130
    assert len(list((run / "reconstruction").iterdir())) == 1 and not (run / "result.json").exists()
    assert command(["--resume", run]) == 0
    assert calls == [1, 1, 1]
    assert outcome_of(run) == outcome_of(runs[0] / "fitted")
    assert result_of(run)["spent"]["reconstruction"]["models"] == 2


@pytest.mark.slow
def test_weights_that_do_no_good_on_calibration_text_are_not_kept(runs, command, tiny, tmp_path, monkeypatch):
    def ruin(state, config, family, students, ids, settings, on_layer):
        fits = []
        for model, _spec in students:
            for parameter in model.parameters():
                parameter.data.mul_(0.1)
            fits.append([reconstruction.SubLayerFit(0, "mlp", 1.0, 1.0)])
        return fits

    monkeypatch.setattr(reconstruction, "reconstruct", ruin)
    assert command(few(tiny, tmp_path / "run")) == 0
    entry = next(entry for entry in result_of(tmp_path / "run")["front"] if entry["winner"] == 0)
    assert not entry["reconstruction"]["kept"]
    states = [
        AutoModelForCausalLM.from_pretrained(run / "winners/0").state_dict()
        for run in (tmp_path / "run", runs[0] / "plain")
    ]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    assert "weights are the teacher's own. It" in (tmp_path / "run/winners/0/README.md").read_text()


def member(params: int, vocabulary: tuple[int, ...] | None = None) -> reconstruction.Member:
    return reconstruction.Member(0, SubnetSpec((0,), (), vocabulary), params, is_winner=True)


def test_students_share_a_pass_as_far_as_memory_goes(monkeypatch):
    monkeypatch.setattr(reconstruction, "_GROUP_BYTES", 400)
    groups = reconstruction._groups([member(params) for params in (60, 40, 50, 200, 1)])
    assert [[one.params for one in group] for group in groups] == [[60, 40], [50], [200], [1]]
    groups = reconstruction._groups([member(1), member(2, (0, 1)), member(3), member(4, (0,))])  # one text for a group
    assert [[one.params for one in group] for group in groups] == [[1, 3], [4], [2]]


def test_flops_are_those_of_every_product():
    teacher = tiny_family("qwen3").architecture(tiny_config("qwen3"))
    head = 2 * teacher.structure.vocab_size * 32
    body, queries, neurons, tokens = flops_per_token(teacher, 16) - head, 48, 24, 100
    squares = {width: 2 * width * width * 5 / 8 for width in (32, queries, neurons)}  # symmetric, in four blocks
    per_layer = sum(squares[32] + 2 * 32 * 32 + squares[width] + 2 * width * 32 for width in (queries, neurons))
    solves = sum(width**3 / 3 + 2 * width**2 * 32 + 32**3 / 3 + 2 * 32**2 * 32 for width in (queries, neurons))
    expected = tokens * (2 * body + 3 * per_layer) + 3 * solves
    assert reconstruction_flops(teacher, [teacher], tokens, 16) == pytest.approx(expected)
