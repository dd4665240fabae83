"""How a search hands its work to processes on GPUs; what these compute is the same, and is proved elsewhere."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slm_ray.models.teachers import load_teacher
from slm_ray.records.search import Measurement
from slm_ray.search import gate_pool, held_out, measuring


def test_held_out_text_comes_back_in_order(monkeypatch):
    done = []

    def in_full(settings, specs, workers, on_done):
        assert workers == 3
        for number in reversed(specs):  # the last is ready first
            on_done(number, {"perplexity": Measurement(value=float(specs[number]), stderr=None, tokens=8, seconds=0.0)})

    monkeypatch.setattr(held_out, "measure_in_full", in_full)
    found = held_out.measure_held_out(SimpleNamespace(device="cpu"), [10, 20, 30], done.append, 3)
    assert [one.value for one in found] == [10, 20, 30] and done == [1, 2, 3]


@pytest.mark.parametrize("workers, expected", [(None, 4), (1, 1)])  # two for each GPU
def test_candidates_are_measured_by_actors_on_gpus(monkeypatch, workers, expected):
    made, found = [], {}

    def remote(**options):
        made.append(options)
        return lambda kind: SimpleNamespace(remote=lambda settings: made.append(kind))

    pool = SimpleNamespace(map_unordered=lambda call, items: [(trial, spec * 2) for trial, spec in reversed(items)])
    monkeypatch.setattr(measuring.ray, "remote", remote)
    monkeypatch.setattr(measuring.ray, "put", lambda value: value)
    monkeypatch.setattr(measuring.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr(measuring, "ActorPool", lambda actors: pool)
    settings = SimpleNamespace(device="cuda", threads=1)
    specs = dict(enumerate((10, 20, 30, 40, 50)))
    measuring.measure_in_full(settings, specs, workers, found.__setitem__)
    assert made == [{"num_cpus": 1, "num_gpus": 0.5}, *[measuring.Measurer] * expected]
    assert found == {0: 20, 1: 40, 2: 60, 3: 80, 4: 100}


def test_a_process_prepares_once_for_all_candidates_of_a_call(monkeypatch):
    made = []

    def prepared(settings):
        made.append(settings)
        return SimpleNamespace(measure=lambda trial, spec: (trial, settings + spec))

    monkeypatch.setattr(measuring, "Measurer", prepared)
    monkeypatch.setattr(measuring, "_ready", {})
    found = [measuring._measure(*one) for one in (("a", 10, 0, 1), ("a", 10, 1, 2), ("b", 20, 0, 1))]
    assert found == [(0, 11), (1, 12), (0, 21)] and made == [10, 20]


def test_gate_gradients_of_actors_are_those_of_tasks(monkeypatch, tiny):
    """The actors stand here in this process, and on its processor."""
    made = []

    def remote(**options):
        def kind(function):
            def make(*fixed):
                actor = function(*fixed[:2], "cpu", *fixed[3:])
                made.append(options)
                return SimpleNamespace(gradients=SimpleNamespace(remote=actor.gradients))

            return SimpleNamespace(remote=make)

        return kind

    pool = SimpleNamespace(map=lambda call, values: [call(actors[n % 2], one) for n, one in enumerate(values)])
    actors = []
    monkeypatch.setattr(gate_pool.ray, "remote", remote)
    monkeypatch.setattr(gate_pool.ray, "put", lambda value: value)
    monkeypatch.setattr(gate_pool.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(gate_pool, "ActorPool", lambda given: actors.extend(given) or pool)
    teacher = load_teacher(str(tiny.teacher), tiny.cache)
    ids = np.random.default_rng(0).integers(0, 50, (10, 12), dtype=np.int32)
    found = gate_pool.GatePool(teacher, "fp32", ids, 5, 1, "cuda").collect(1, None)
    assert made == [{"num_cpus": 1, "num_gpus": 0.5}] * 2
    rows = torch.from_numpy(ids[5:]).long()
    expected = [gate_pool._gated(teacher, "fp32", "cpu").gradients(part, None) for part in rows.split(2)]
    np.testing.assert_array_equal(found.neurons, np.concatenate([part.neurons for part in expected]))
    assert found.tokens == 5 * 11
