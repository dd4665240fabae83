import json
from dataclasses import replace

import pytest

from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.subnet import LayerUnits, SubnetSpec, from_ranges, full_subnet, to_ranges
from tests.models.tiny import axis_specs, random_spec, tiny_config, tiny_family

TEACHER = tiny_family("llama").architecture(tiny_config("llama"))  # 3 layers, 4 heads on 2 key-value heads, 24 neurons
FULL = full_subnet(TEACHER)


@pytest.mark.parametrize(
    ("indices", "text"), [((), ""), ((4,), "4"), ((0, 1, 2, 7), "0-2,7"), ((1, 3, 5), "1,3,5"), ((8, 9), "8-9")]
)
def test_ranges_read_back(indices, text):
    assert to_ranges(indices) == text
    assert from_ranges(text) == indices


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_sub_network_reads_back_from_json_and_keeps_its_digest(name):
    teacher = tiny_family(name).architecture(tiny_config(name))
    specs = [full_subnet(teacher), *axis_specs(teacher).values(), *(random_spec(teacher, seed) for seed in range(5))]
    for spec in specs:
        again = SubnetSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec
        assert again.digest == spec.digest
        architecture = spec.architecture_in(teacher)
        assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture
    assert len({spec.digest for spec in specs}) == len(set(specs))


def test_one_architecture_may_belong_to_many_sub_networks():
    first, last = (SubnetSpec(hidden, FULL.layers) for hidden in (FULL.hidden[:16], FULL.hidden[16:]))
    assert first.digest != last.digest
    assert first.architecture_in(TEACHER).digest == last.architecture_in(TEACHER).digest


def test_sizes_are_counted_per_layer():
    units = LayerUnits(1, (1,), ((3,),), (0, 5, 23))
    architecture = SubnetSpec((0, 31), (units, LayerUnits(2, (), (), (4,)))).architecture_in(TEACHER)
    assert architecture.layers == (LayerShape(1, 1, 3), LayerShape(0, 0, 1))
    assert architecture.hidden_size == 2
    assert not architecture.is_uniform


LAYER = FULL.layers[0]
WRONG_LAYERS = [
    ("keeps nothing", LayerUnits(0, (), (), ())),
    ("key-value heads: indices must ascend within 0..1", replace(LAYER, kv_heads=(0, 2))),
    ("every kept key-value head needs the same number", replace(LAYER, query_heads=((0, 1), (2,)))),
    ("query heads: at least one", replace(LAYER, query_heads=((), ()))),
    ("do not all belong to key-value head 0", replace(LAYER, query_heads=((0, 2), (2, 3)))),
    ("query heads: indices must ascend within 0..3", replace(LAYER, query_heads=((0, 1), (3, 4)))),
    ("neurons: indices must ascend within 0..23, got 0-24", replace(LAYER, neurons=tuple(range(25)))),
]
WRONG = [
    ("hidden channels: at least one must be kept", replace(FULL, hidden=())),
    ("hidden channels: indices must ascend within 0..31", replace(FULL, hidden=(0, 32))),
    ("hidden channels: indices must ascend", replace(FULL, hidden=(1, 0))),
    ("at least one layer must keep attention", SubnetSpec(FULL.hidden, (LayerUnits(0, (), (), (1,)),))),
    ("source layers: indices must ascend within 0..2", replace(FULL, layers=(LAYER, LAYER))),
    *((message, replace(FULL, layers=(layer, *FULL.layers[1:]))) for message, layer in WRONG_LAYERS),
]


@pytest.mark.parametrize(("message", "spec"), WRONG)
def test_what_the_teacher_cannot_give_is_refused(message, spec):
    with pytest.raises(ValueError, match=message.replace("..", r"\.\.")):
        spec.architecture_in(TEACHER)


@pytest.mark.parametrize("sizes", [(-1, 1, 4), (3, 2, 4), (4, 0, 4)])
def test_sizes_that_no_layer_can_have_are_refused(sizes):
    with pytest.raises(ValueError, match=r"num_attention_heads|negative"):
        LayerShape(*sizes)


def test_a_model_needs_a_width():
    with pytest.raises(ValueError, match="hidden_size must be positive, got 0"):
        Architecture(TEACHER.structure, 0, TEACHER.layers)
