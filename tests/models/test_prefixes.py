"""First layers' outputs, kept for sub-networks that begin alike: the same losses, fewer layers run, within a limit."""

from dataclasses import replace

import pytest
import torch

from slm_ray.models.prefixes import PrefixCache, prefix_keys
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.cost import flops_per_token
from slm_ray.records.subnet import full_subnet
from tests.models.tiny import NAMES, axis_specs, random_spec, tiny_family, tiny_ids, tiny_model

ROOM = 10**7


def runners(name: str, limit: int = ROOM) -> tuple[SubnetRunner, SubnetRunner]:
    """One that keeps nothing, and one that does."""
    model, family = tiny_model(name), tiny_family(name)
    parts = model.state_dict(), model.config, family
    return SubnetRunner(*parts), SubnetRunner(*parts, prefix_bytes=limit)


def tails(runner: SubnetRunner) -> list:
    """Sub-networks that differ in their last layer alone."""
    full = full_subnet(runner.teacher)
    last = full.layers[-1]
    cut = [replace(last, neurons=last.neurons[:count]) for count in (1, 3, 5)]
    return [full, *(replace(full, layers=(*full.layers[:-1], layer)) for layer in cut)]


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_the_same_to_the_last_bit(name):
    plain, keeping = runners(name)
    specs = [*tails(plain), *axis_specs(plain.teacher).values(), *tails(plain)]
    specs += [random_spec(plain.teacher, seed, drop_hidden=seed % 2 == 0) for seed in range(3)]
    batches = [tiny_ids(batch=2, length=17, seed=seed) for seed in (0, 1)]
    for spec in specs:
        for number, ids in enumerate(batches):
            assert torch.equal(keeping.token_losses(spec, ids, batch=number), plain.token_losses(spec, ids))
    assert keeping.reused_flops > 0 and plain.reused_flops == 0


def test_only_layers_that_differ_run_and_the_others_flops_are_told():
    plain, keeping = runners("llama")
    first, second = tails(plain)[:2]
    ids = tiny_ids(batch=2, length=16)
    ran: list[int] = []

    def watch(base) -> None:
        for number, layer in enumerate(base.layers):
            layer.mlp.register_forward_hook(lambda *_args, number=number: ran.append(number))

    keeping.hidden_states(first, ids, watch=watch, batch=0)
    assert ran == list(range(len(first.layers))) and keeping.reused_flops == 0
    ran.clear()
    keeping.hidden_states(second, ids, watch=watch, batch=0)
    assert ran == [len(first.layers) - 1]
    whole = second.architecture_in(plain.teacher)
    rest = replace(whole, layers=whole.layers[-1:])
    assert keeping.reused_flops == 32 * (flops_per_token(whole, 16) - flops_per_token(rest, 16))
    ran.clear()
    keeping.hidden_states(second, ids, watch=watch)  # a batch without a name
    keeping.hidden_states(second, ids, watch=watch, batch=1)  # another one
    assert ran == 2 * list(range(len(first.layers)))


def test_keys_are_equal_exactly_as_far_as_layers_are():
    plain, _ = runners("llama")
    whole, cut = tails(plain)[:2]
    assert prefix_keys(whole)[:-1] == prefix_keys(cut)[:-1] and prefix_keys(whole)[-1] != prefix_keys(cut)[-1]
    narrow = replace(whole, hidden=whole.hidden[:-1])
    assert not set(prefix_keys(narrow)) & set(prefix_keys(whole))
    skipped = replace(whole, layers=whole.layers[1:])
    assert not set(prefix_keys(skipped)) & set(prefix_keys(whole))
    without = replace(whole.layers[0], kv_heads=(), query_heads=())  # heads of one are no neurons of another
    assert prefix_keys(replace(whole, layers=(without, *whole.layers[1:])))[0] != prefix_keys(whole)[0]


def test_the_limit_holds_and_what_was_used_last_stays():
    output = torch.zeros(25)  # 100 bytes
    cache = PrefixCache(250, num_layers=6)
    for name in "abc":
        keys = [name.encode() + bytes([depth]) for depth in range(2)]
        layers = [torch.nn.Identity(), torch.nn.Identity()]
        cache.watch(layers, keys, 0)
        layers[0](output)
        cache.deepest([b"a\0", b"a\1"], 0)
    assert cache.held == 200
    kept = {name: cache.deepest([name.encode() + b"\0"], 0)[0] for name in "abc"}
    assert kept == {"a": 1, "b": 0, "c": 1}


def test_a_limit_below_one_output_keeps_nothing_and_still_gives_losses():
    plain, keeping = runners("gpt2", limit=10)
    for spec in tails(plain):
        assert torch.equal(keeping.token_losses(spec, tiny_ids(), batch=0), plain.token_losses(spec, tiny_ids()))
    assert keeping.reused_flops == 0
