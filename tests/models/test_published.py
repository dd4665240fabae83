"""Two tables of published models, of sizes for dry runs and of parameters for peers, say the same."""

from slm_ray.evaluate import subjects as peers
from slm_ray.models.families import published as sizes
from slm_ray.records.cost import num_params


def test_the_tables_of_published_models_agree():
    params = {name: count for models in peers._FAMILIES.values() for name, count in models.items()}
    found = {name: num_params(sizes.published_architecture(name)) for name in sizes._PUBLISHED}
    assert found == {name: params[name] for name in found}
