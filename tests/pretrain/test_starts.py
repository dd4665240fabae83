"""Where training starts: what each start has of student and teacher, and that students of every family train."""

import pytest
import torch

from slm_ray.config.errors import UserError
from slm_ray.models.extraction import extract, save_student
from slm_ray.models.families import config_architecture
from slm_ray.models.starts import build_start
from slm_ray.pretrain.inputs import check_positions
from slm_ray.records.cost import num_params
from slm_ray.records.subnet import SubnetSpec, full_subnet
from tests.distill.store_cases import VOCABULARY, make_teacher
from tests.models.tiny import NAMES, random_spec, tiny_config, tiny_family, tiny_model
from tests.pretrain.tiny_pretrain import make_job, run, steps_of, write_start

UNEVEN = 3  # a seed whose sub-network skips sub-layers


def student_of(name, seed=UNEVEN, **changes):
    """A heterogeneous student of a tiny teacher."""
    config, family = tiny_config(name, **changes), tiny_family(name)
    spec = random_spec(family.architecture(config), seed)
    return extract(tiny_model(name, seed=7, **changes).state_dict(), config, family, spec, dtype=torch.float32)


def weights(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A teacher in a cache, and a student's folder."""
    folder = tmp_path_factory.mktemp("models")
    save_student(student_of("llama", vocab_size=VOCABULARY), folder / "student")
    return make_teacher(folder, seed=7), folder / "student"


def whole_teacher():
    return weights(tiny_model("llama", seed=7, vocab_size=VOCABULARY))


def start_of(places, start, seed=0):
    teacher, student = places
    return build_start(start, student, "it", seed, teacher)


def test_a_student_starts_with_its_own_weights(places):
    found, expected = weights(start_of(places, "student")), weights(student_of("llama", vocab_size=VOCABULARY))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_random_weights_differ_by_seed_in_one_architecture(places):
    first, second, again = (weights(start_of(places, "random", seed)) for seed in (0, 1, 0))
    student = weights(start_of(places, "student"))
    assert {name: value.shape for name, value in first.items()} == {key: value.shape for key, value in student.items()}
    assert all(torch.equal(first[name], again[name]) for name in first)
    matrices = [name for name, value in first.items() if value.ndim == 2]
    assert not any(torch.equal(first[name], other[name]) for name in matrices for other in (second, student))
    sizes = [config_architecture(start_of(places, start).config) for start in ("random", "student")]
    assert sizes[0] == sizes[1]


def test_first_n_has_the_teachers_embeddings_norm_and_first_layers(places):
    teacher, _ = places
    model, whole = start_of(places, "first-n"), whole_teacher()
    found, count = weights(model), model.config.num_hidden_layers
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= found.keys()
    size = num_params(config_architecture(start_of(places, "student").config))
    full = full_subnet(teacher.architecture())
    one_more = SubnetSpec(full.hidden, full.layers[: count + 1]).architecture_in(teacher.architecture())
    assert num_params(config_architecture(model.config)) <= size < num_params(one_more)


def test_a_random_sub_network_has_the_students_sizes_and_the_teachers_numbers(places):
    student = config_architecture(start_of(places, "student").config)
    first, second = start_of(places, "random-subnet", 0), start_of(places, "random-subnet", 1)
    assert config_architecture(first.config).layers == config_architecture(second.config).layers == student.layers
    teacher = set(whole_teacher()["model.embed_tokens.weight"].flatten().tolist())
    embeddings = [weights(model)["model.embed_tokens.weight"] for model in (first, second)]
    assert not torch.equal(*embeddings) and set(embeddings[0].flatten().tolist()) <= teacher


def test_starts_that_cannot_be_made(places, tmp_path):
    teacher, student = places
    with pytest.raises(UserError, match="give --teacher"):
        build_start("first-n", student, "it", 0, None)
    with pytest.raises(UserError, match="could not be loaded as a causal language model"):
        build_start("student", tmp_path, "it", 0, None)
    tiny_model("llama", num_hidden_layers=5).save_pretrained(tmp_path / "large")
    with pytest.raises(UserError, match="fits into the teacher"):
        build_start("random-subnet", tmp_path / "large", "it", 0, teacher)


def test_a_model_needs_positions_for_the_sequences():
    with pytest.raises(UserError, match="--sequence-length 65 is over it's 64 positions: give 64 or less"):
        check_positions(tiny_model("llama").config, "it", 65)


@pytest.mark.parametrize("name", NAMES)
def test_students_of_every_family_train_with_and_without_activation_checkpointing(name, data, tmp_path):
    """Tied heads and untied ones; saving the activations or computing them again gives the same steps."""
    found = []
    for saves in (False, True):
        start = write_start(tmp_path / str(saves), student_of(name))
        found.append(run(make_job(start, data, 3, activation_checkpointing=saves)))
    plain, again = found
    assert len(steps_of(plain)) == 3, plain
    assert steps_of(again) == pytest.approx(steps_of(plain), rel=1e-6)
    assert steps_of(again, "grad_norm") == pytest.approx(steps_of(plain, "grad_norm"), rel=1e-5)
    assert steps_of(plain)[-1] < steps_of(plain)[0]
