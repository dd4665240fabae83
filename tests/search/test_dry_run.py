import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from slm_ray.config.base import build_config, flatten, options_of
from slm_ray.config.errors import UserError
from slm_ray.models import teachers
from slm_ray.models.teacher_sizes import BUNDLED_ARCHITECTURE
from slm_ray.records.cost import flops_per_token
from slm_ray.runtime.commands import run_command
from slm_ray.runtime.forecast import Work
from slm_ray.search import estimates
from slm_ray.search.command import main
from slm_ray.search.config import EFFORTS, SearchConfig
from slm_ray.search.dry_run import plan_text
from slm_ray.search.inputs import space_of
from tests.models import tiny

# SmolLM2-135M, written from its definition: tied embeddings, 30 layers of 9 query and 3 key-value heads of 64, SwiGLU.
WIDTH, LAYERS, NEURONS, VOCABULARY, LENGTH = 576, 30, 1536, 49_152, 512
LAYER_WEIGHTS = WIDTH * (2 * 9 * 64 + 2 * 3 * 64) + 3 * WIDTH * NEURONS
PARAMS = VOCABULARY * WIDTH + LAYERS * (LAYER_WEIGHTS + 2 * WIDTH) + WIDTH
FLOPS = 2 * (VOCABULARY * WIDTH + LAYERS * (LAYER_WEIGHTS + 2 * 9 * 64 * LENGTH))
KV_BYTES = 2 * 2 * LAYERS * 3 * 64


@pytest.fixture(autouse=True)
def _nothing_may_be_spent(monkeypatch, tmp_path):
    """Anything that downloads, starts or loads fails the test, whatever it is called from."""
    import ray
    import transformers

    def spend(*_args, **_kwargs):
        raise AssertionError("a dry run spent something")

    for owner, name in (
        (subprocess, "Popen"), (urllib.request, "urlopen"), (socket.socket, "connect"), (ray, "init"),
        (teachers, "load_file"), (transformers.AutoModelForCausalLM, "from_pretrained"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, spend)
    monkeypatch.setattr(estimates, "multiplication_rate", lambda *_: 1e12)
    monkeypatch.chdir(tmp_path)


def _run(capsys, *arguments: str) -> str:
    assert run_command(main, ["--dry-run", *arguments]) == 0
    return capsys.readouterr().out


def config_of(**options: object) -> SearchConfig:
    return build_config(SearchConfig, {"effort": "thorough"} | options)


def _sizes(config: SearchConfig) -> estimates.Sizes:
    return estimates.search_sizes(config, space_of(config), BUNDLED_ARCHITECTURE)


def _phases(config: SearchConfig) -> dict[str, Work]:
    forecast = estimates.forecast_search(config, space_of(config), _sizes(config), "bf16", "bf16")
    return {work.name: work for work in forecast.work}


def _tiny_folder(folder: Path, name: str = "llama") -> Path:
    """A model's folder with its config alone."""
    tiny.tiny_model(name).save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    return folder


def test_it_prints_sizes_that_equal_the_closed_form(capsys):
    shown = _run(capsys)
    assert f"{PARAMS:,} parameters · {FLOPS:,} FLOPs/token · {KV_BYTES:,} KV-cache bytes/token" in shown
    assert f"reaching {VOCABULARY // 4 * WIDTH + WIDTH + _smallest_layer():,} to {PARAMS:,} parameters" in shown
    assert f"budget: {int(0.45 * PARAMS):,} to {int(0.7 * PARAMS):,} parameters" in shown


def _smallest_layer() -> int:
    """One layer with one key-value head, its three query heads and no neurons."""
    return WIDTH * (2 * 3 * 64 + 2 * 64) + WIDTH


def test_it_leaves_nothing_behind(capsys, tmp_path, monkeypatch):
    cache = tmp_path / "elsewhere"
    monkeypatch.setenv("SLM_RAY_CACHE", str(cache))
    shown = _run(capsys)
    assert list(tmp_path.iterdir()) == []
    assert "93 MB come from the package index" in shown
    assert shown.endswith("Nothing was downloaded, started or written.\n")


def test_it_prints_every_option_resolved(capsys):
    shown = _run(capsys, "--workers", "3", "--seed", "7", "--precision", "fp32")
    rows = dict(line.split(maxsplit=1) for line in shown.split("Teacher\n")[0].splitlines()[1:] if line.strip())
    assert rows["workers"] == "3"
    assert rows["seed"] == "7"
    assert rows["params"] == "0.45..0.7"
    assert rows["out"] == "runs/fine-TIME"
    optional = {"flops", "kv_bytes", "address", "storage", "other_data", "minutes", "vocabulary"}
    assert set(rows) == set(options_of(SearchConfig)) - optional


def test_the_work_of_each_phase_follows_from_the_sizes():
    config = config_of(trials=50, keep_vocabulary=True)
    phases, middle = _phases(config), flops_per_token(_sizes(config).candidate, LENGTH)
    scored = config.scores.tokens
    assert phases["unit scores"].flops == 2 * scored * FLOPS
    assert phases["search"].most_tokens == 50 * 8192
    assert phases["search"].flops == phases["search"].tokens * middle
    assert phases["search"].tokens < phases["search"].most_tokens
    assert 0.45 * FLOPS < middle < 0.8 * FLOPS
    whole = _phases(config.replace(stages="none"))["search"]
    assert whole.tokens == whole.most_tokens


def test_a_dial_sets_options_and_single_flags_come_over_it():
    quick, default = build_config(SearchConfig, {"effort": "quick"}), build_config(SearchConfig, {})
    assert flatten(quick).items() >= EFFORTS["quick"].items() and flatten(default).items() >= EFFORTS["default"].items()
    assert build_config(SearchConfig, {"effort": "quick", "trials": 30}).plan.trials == 30


def test_minutes_set_the_largest_plan_that_fits(capsys, monkeypatch):
    monkeypatch.setattr(estimates, "machine_rate", lambda *_: 1e12)

    def fitted(minutes: float, **options: object) -> SearchConfig:
        return estimates.fit_to_minutes(config_of(effort="default", **options), minutes)

    few, more = fitted(4), fitted(7)
    assert EFFORTS["quick"]["trials"] < few.plan.trials < more.plan.trials < EFFORTS["thorough"]["trials"]
    assert few.scores.tokens < more.scores.tokens
    assert fitted(10, trials=30).plan.trials == 30
    assert run_command(main, ["--dry-run", "--minutes", "0.2"]) == 2
    assert "--minutes 0.2 is less than the least plan takes on this machine" in capsys.readouterr().err


def test_kl_costs_the_teachers_head_beside_the_candidates():
    perplexity, kl = (
        _phases(config_of(keep_vocabulary=True, **more))["search"] for more in ({}, {"objectives": "kl,params"})
    )
    assert kl.flops - perplexity.flops == pytest.approx(kl.tokens * 2 * VOCABULARY * WIDTH)


def test_finalists_cost_their_training_and_nothing_without_them():
    assert "finalists" not in _phases(config_of())
    few, many = (_phases(config_of(finalists=count))["finalists"] for count in (3, 6))
    assert few.tokens == 3 * (16_000 + 2 * 8192) and many.tokens == 2 * few.tokens
    assert many.flops == pytest.approx(2 * few.flops) and few.flops > _phases(config_of())["search"].flops / 10


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_folder_is_read_without_its_weights(capsys, tmp_path, name):
    folder = _tiny_folder(tmp_path / "teacher", name)
    count = sum(parameter.numel() for parameter in tiny.tiny_model(name).parameters())
    arguments = ["--space", "depth", "--params", "0.9", "--sequence-length", "16", "--objectives", "kl,params"]
    assert f"  {count:,} parameters" in _run(capsys, "--teacher", str(folder), *arguments)


def test_what_is_on_the_hub_is_not_fetched(capsys):
    shown = _run(capsys, "--teacher", "nobody/nothing", "--data", "someone/texts")
    assert "someone/texts: on the hub, not looked at" in shown
    assert "nobody/nothing: comes from the hub, once; its sizes are known when it is here" in shown


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--space", "depth", "--params", "60M..60.1M"], "the nearest it can reach are"),
        (["--params", "500M"], "more than the teacher's 135M"),
        (["--sequence-length", "9000", "--calibration-tokens", "9000", "--held-out-tokens", "9000"], "8192"),
        (["--teacher", "smollm2"], "'smollm2-135m'"),
        (["--teacher", "."], "config.json is missing"),
        (["--data", "missing.txt"], "does not exist"),
    ],
)
def test_bad_input_is_found_before_anything_is_spent(capsys, arguments, said):
    assert run_command(main, ["--dry-run", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_run_folder_in_use_is_found_and_left_alone(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no run"):
        plan_text(config_of(out=str(out)))
    (out / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"--resume {out}"):
        plan_text(config_of(out=str(out)))
    assert {entry.name for entry in out.iterdir()} == {"notes.txt", "config.json"}
