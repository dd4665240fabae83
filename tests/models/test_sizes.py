"""Sizes read off a config, plain or heterogeneous."""

import pytest
from transformers import AutoConfig, OPTConfig

from slm_ray.models.extraction import extract, save_student
from slm_ray.models.families import base_family, config_architecture
from slm_ray.records.cost import num_params
from tests.models.tiny import NAMES, axis_specs, tiny_config, tiny_family, tiny_model


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_models_sizes(name):
    model = tiny_model(name)
    architecture = config_architecture(model.config)
    assert architecture == tiny_family(name).architecture(tiny_config(name))
    assert num_params(architecture) == count(model)


@pytest.mark.parametrize("name", NAMES)
def test_a_students_sizes_are_those_of_what_was_cut(name, tmp_path):
    """Layers of different sizes, skipped ones too; the same after the config was saved and read."""
    teacher, config, family = tiny_model(name), tiny_config(name), tiny_family(name)
    whole = family.architecture(config)
    for axis, spec in axis_specs(whole).items():
        student = extract(teacher.state_dict(), config, family, spec)
        architecture = config_architecture(student.config)
        expected = spec.architecture_in(whole)
        assert architecture.layers == expected.layers and architecture.hidden_size == expected.hidden_size, axis
        assert num_params(architecture) == num_params(expected) == count(student), axis
        save_student(student, tmp_path / axis)
        again = AutoConfig.from_pretrained(tmp_path / axis)
        assert config_architecture(again) == architecture and base_family(again) is family


def test_a_family_that_is_not_declared_has_none():
    assert config_architecture(OPTConfig()) is None and base_family(OPTConfig()) is None
