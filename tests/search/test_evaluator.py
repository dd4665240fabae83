"""Proxies of a tiny teacher's sub-networks against Hugging Face's own figures and the definitions."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from slm_ray.config.errors import UserError
from slm_ray.models.extraction import extract
from slm_ray.models.gates import GatedTeacher
from slm_ray.models.importance import activation_scores, magnitude_scores, taylor_change
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.subnet import full_subnet
from slm_ray.search.evaluator import Evaluator, EvaluatorSettings, share_of
from slm_ray.search.race import LARGEST_LOSS, Rival, StagedLoss, stage_ends
from slm_ray.search.registry import PROXIES, parse_objectives
from slm_ray.search.static import block_influence_kept, importance_lost, magnitude_kept
from slm_ray.search.tasks import Outcome
from tests.models.tiny import random_spec, tiny_family, tiny_ids, tiny_model
from tests.references import naive_divergences

NAME, SEQUENCES, LENGTH = "llama", 24, 33


class InMemory(SimpleNamespace):
    """A teacher that is nowhere on the disk."""

    def here(self):
        return self

    def config(self):
        return self.model.config

    def family(self):
        return tiny_family(NAME)

    def state_as(self, dtype):
        return {key: tensor.to(dtype) for key, tensor in self.model.state_dict().items()}


@pytest.fixture(scope="module")
def model():
    model = tiny_model(NAME)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.7  # losses of a few nats
    return model


@pytest.fixture(scope="module")
def ids():
    return tiny_ids(batch=SEQUENCES, length=LENGTH).numpy().astype(np.int32)


@pytest.fixture(scope="module")
def teacher(model):
    return tiny_family(NAME).architecture(model.config)


def scores_of(model, ids):
    family = tiny_family(NAME)
    runner = SubnetRunner(model.state_dict(), model.config, family)
    tokens = torch.from_numpy(ids[:4]).long()
    gradients = GatedTeacher(model.state_dict(), model.config, family).gradients(tokens)
    return {
        "magnitude": magnitude_scores(model.state_dict(), family, runner.teacher),
        "activation": activation_scores(runner, tokens),
        "taylor": taylor_change(gradients, 2, None),
    }


def evaluator_of(model, ids, *proxies, stages=(), confidence=0.9, scores=None) -> Evaluator:
    settings = EvaluatorSettings(
        teacher=InMemory(model=model),
        precision="fp32",
        ids=ids,
        proxies=proxies,
        stage_tokens=stages,
        confidence=confidence,
        threads=1,
        scores=scores or {},
    )
    return Evaluator(settings)


@torch.no_grad()
def own_losses(model, spec, ids) -> torch.Tensor:
    student = extract(model.state_dict(), model.config, tiny_family(NAME), spec)
    ids = torch.from_numpy(ids).long()
    return functional.cross_entropy(student(ids).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


@pytest.mark.parametrize("seed", [1, 4])
def test_perplexity_is_that_of_the_extracted_model(seed, model, ids, teacher):
    spec = random_spec(teacher, seed)
    outcome = evaluator_of(model, ids, "perplexity").evaluate(spec)
    losses = own_losses(model, spec, ids)
    measured = outcome.measurements["perplexity"]
    assert measured.value == pytest.approx(float(losses.mean().exp()), rel=1e-4)
    per_sequence = losses.mean(1).numpy()
    stderr = per_sequence.std(ddof=1) / math.sqrt(SEQUENCES)
    assert measured.stderr == pytest.approx(measured.value * stderr, rel=1e-3)  # the delta method
    assert measured.blocks == pytest.approx(per_sequence.tolist(), abs=2e-5)
    assert (measured.tokens, outcome.decided) == (SEQUENCES * LENGTH, "full")
    assert outcome.values["perplexity"] == pytest.approx(measured.value)


def test_kl_is_that_of_whole_distributions(model, ids, teacher):
    spec = random_spec(teacher, 1, drop_hidden=True)
    outcome = evaluator_of(model, ids, "kl").evaluate(spec)
    student = extract(model.state_dict(), model.config, tiny_family(NAME), spec)
    tokens = torch.from_numpy(ids).long()
    with torch.no_grad():
        eye = torch.eye(model.config.vocab_size)
        a, b = (net(tokens).logits[:, :-1].flatten(0, 1) for net in (model, student))
        expected = naive_divergences(a, b, eye)
    assert outcome.values["kl"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert evaluator_of(model, ids, "kl").evaluate(full_subnet(teacher)).values["kl"] == pytest.approx(0, abs=1e-4)


def test_a_beaten_candidate_stops_at_the_first_stage_and_a_better_one_never(model, ids, teacher):
    evaluator = evaluator_of(model, ids, "perplexity", stages=(8 * LENGTH, 16 * LENGTH))
    spec = random_spec(teacher, 1)
    whole = evaluator.evaluate(spec).measurements["perplexity"]
    rng = np.random.default_rng(0)
    better = Rival(tuple(block - 0.2 + 0.01 * rng.normal() for block in whole.blocks))
    stopped = evaluator.evaluate(spec, better)
    measured = stopped.measurements["perplexity"]
    assert stopped.decided == "dominated" and measured.tokens == 8 * LENGTH
    assert measured.blocks == whole.blocks[:8]
    assert stopped.values["perplexity"] == pytest.approx(whole.value, rel=0.02)  # the control variate sees all tokens
    worse = Rival(tuple(block + 0.2 + 0.01 * rng.normal() for block in whole.blocks))
    finished = evaluator.evaluate(spec, worse)
    assert finished.decided == "full" and finished.measurements["perplexity"].blocks == whole.blocks
    assert finished.values["perplexity"] == pytest.approx(whole.value)


def test_a_race_that_turns_late_stops_at_a_later_stage():
    """Level with its rival on the first stage, worse from then on."""
    ids = torch.zeros(24, 33, dtype=torch.long)
    levels = torch.cat([torch.zeros(8), torch.full((16,), 0.5)])

    def losses(batch, first):
        own = 0.01 * torch.sin(torch.arange(first, first + len(batch)).float())
        return (2 + levels[first : first + len(batch)] + own)[:, None].expand(-1, 32)

    found = StagedLoss(ids, (8 * 33, 16 * 33), 0.9).measure(losses, Rival((2.0,) * 24))
    assert found.is_beaten and found.tokens == 16 * 33
    assert found.estimate == pytest.approx(2.25, abs=0.01)


def test_ruined_candidates_are_worth_nothing_but_stay_numbers():
    ids = torch.zeros(8, 33, dtype=torch.long)
    for bad in (math.nan, math.inf):
        found = StagedLoss(ids).measure(lambda batch, _first, bad=bad: torch.full((len(batch), 32), bad))
        assert found.mean == found.estimate == LARGEST_LOSS and found.stderr == 0


def test_stages_end_at_whole_sequences():
    for stages, ends in (
        ((), [16]),
        ((512, 2048), [1, 4, 16]),
        ((1,), [1, 16]),
        ((9000,), [16]),
        ((700, 800), [1, 2, 16]),
    ):
        assert stage_ends(16, 512, stages) == ends


def test_sums_of_scores_are_their_definitions(model, ids, teacher):
    scores = scores_of(model, ids)
    taylor, magnitude, activation = scores["taylor"], scores["magnitude"], scores["activation"]
    for seed in range(6):
        spec = random_spec(teacher, seed)
        kept = {layer.source: layer for layer in spec.layers}
        lost = norm = whole = 0.0
        for layer in range(teacher.num_hidden_layers):
            for axis, units in (("kv_heads", "kv_heads"), ("neurons", "neurons")):
                for unit in range(getattr(taylor, axis).shape[1]):
                    present = layer in kept and unit in getattr(kept[layer], units)
                    lost += 0 if present else getattr(taylor, axis)[layer, unit]
                    norm += getattr(magnitude, axis)[layer, unit] ** 2 if present else 0
                    whole += getattr(magnitude, axis)[layer, unit] ** 2
        lost += sum(taylor.hidden[channel] for channel in range(teacher.hidden_size) if channel not in spec.hidden)
        assert importance_lost(spec, taylor) == pytest.approx(lost, rel=1e-5, abs=1e-6)
        assert magnitude_kept(spec, magnitude) == pytest.approx(norm / whole, rel=1e-5)
        assert block_influence_kept(spec, activation) == pytest.approx(sum(activation.layers[layer] for layer in kept))
    full = full_subnet(teacher)
    assert importance_lost(full, taylor) == pytest.approx(0, abs=1e-5) and magnitude_kept(
        full, magnitude
    ) == pytest.approx(1)


def test_every_proxy_at_once(model, ids, teacher):
    spec = random_spec(teacher, 1)
    outcome = evaluator_of(model, ids, *PROXIES, scores=scores_of(model, ids)).evaluate(spec)
    assert set(outcome.values) == set(outcome.measurements) == set(PROXIES)
    latency = outcome.measurements["latency"]
    assert 0 < latency.value < 1 and latency.stderr >= 0
    rounded = Outcome.model_validate(outcome.rounded().to_json())
    for name, measured in outcome.measurements.items():
        back = rounded.measurements[name]
        assert back.value == pytest.approx(measured.value, rel=1e-6) and back.blocks == measured.blocks
    assert rounded.seconds > 0


def test_objectives_are_a_proxy_and_a_cost():
    assert parse_objectives("importance, kv_bytes") == ("importance", "kv_bytes")
    for text in ("", "params", "latency,params", "perplexity,kl", "perplexity,params,flops", "nope"):
        with pytest.raises(UserError):
            parse_objectives(text)


def test_two_workers_share_a_gpu_where_two_teachers_fit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    small = tiny_family(NAME).architecture(tiny_model(NAME).config)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 << 30))
    assert share_of("cuda", 2, small).needs() == {"CPU": 2, "GPU": 0.5} and share_of("cpu", 2, small).gpus == 0
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=4 << 30))
    assert share_of("cuda", 2, small).gpus == 1
