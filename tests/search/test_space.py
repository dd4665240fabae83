import dataclasses

import pytest
import yaml

from slm_ray.config.errors import ConfigError, UserError
from slm_ray.search.space import load_space, parse_space, space_names, spaces_folder


@pytest.mark.parametrize("name", sorted(path.stem for path in spaces_folder().glob("*.yaml")))
def test_every_space_file_loads_and_reads_back(name):
    space = load_space(name)
    assert space.name == name
    assert space.description
    assert parse_space(space.to_json(), "again") == space
    assert load_space(spaces_folder() / f"{name}.yaml") == space


def test_defaults_are_filled_in():
    axes = {"neurons": {"per": "layer", "select": "subset"}, "heads": {"per": "layer", "select": "count"}}
    space = parse_space({"name": "mine", "axes": axes}, "mine.yaml")
    assert dataclasses.asdict(space.axes["neurons"]) == {
        "per": "layer", "select": "subset", "order": "taylor", "step": 64, "least": 0,
    }  # fmt: skip
    assert space.axes["heads"].step == 1
    queries = parse_space({"name": "q", "axes": {"queries": {"per": "model"}}}, "q").axes["queries"]
    assert (queries.select, queries.least) == ("count", 1)


def test_orders_name_the_scores_needed():
    assert load_space("fine").orders() == ("taylor",)
    assert load_space("depth").orders() == ()
    axes = {"layers": {"select": "count", "order": "natural"}, "heads": {"per": "model", "select": "count"}}
    mixed = parse_space({"name": "m", "order": "magnitude", "axes": axes}, "m")
    assert mixed.orders() == ("magnitude",)
    assert mixed.with_order("activation").orders() == ("activation",)
    assert mixed.with_order("natural").orders() == ()
    with pytest.raises(UserError, match="did you mean 'taylor'"):
        mixed.with_order("tailor")


def test_every_mistake_is_listed_at_once():
    text = """
    name: 7
    descriptoin: typo
    order: tailor
    axes:
      hiden: {per: model, select: count}
      hidden: {per: layer, select: count}
      layers: {select: some, least: 0}
      heads: {select: subset, step: 0, lest: 1}
      queries: {per: model, select: subset}
      neurons: 64
    """
    with pytest.raises(ConfigError) as caught:
        parse_space(yaml.safe_load(text), "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")
    wanted = {
        "name: must be text, got 7",
        "descriptoin: no such field; did you mean 'description'",
        "order: must be one of a few, got 'tailor'; did you mean 'taylor'",
        "axes.hiden: no such axis; did you mean 'hidden'",
        "axes.hidden.per: must be one of a few, got 'layer'; valid: model",
        "axes.layers.select: must be one of a few, got 'some'",
        "axes.layers.least: must be a whole number of at least 1, got 0",
        "axes.heads.per: must be given; valid: layer, model",
        "axes.heads.step: must be a whole number of at least 1, got 0",
        "axes.heads.lest: no such field; did you mean 'least'",
        "axes.queries.select: must be one of a few, got 'subset'; valid: count",
        "axes.neurons: must be a mapping",
    }
    problems = caught.value.problems
    assert len(problems) == len(wanted)
    assert {start for start in wanted if any(problem.startswith(start) for problem in problems)} == wanted


@pytest.mark.parametrize(
    "value", [None, [], "fine", {}, {"name": "x"}, {"name": "x", "axes": {}}, {"name": "x", "axes": 3}]
)
def test_what_is_no_space_is_a_mistake_not_a_crash(value):
    with pytest.raises(ConfigError):
        parse_space(value, "mine.yaml")


def test_names_and_paths(tmp_path):
    with pytest.raises(UserError, match=r"unknown search space 'fien': did you mean 'fine'.*\./mine\.yaml"):
        load_space("fien")
    with pytest.raises(UserError, match="does not exist"):
        load_space("fien.yaml")
    mine = tmp_path / "mine.yml"
    mine.write_text("name: mine\naxes: {layers: {select: count}}\n", encoding="utf-8")
    assert load_space(str(mine)).name == "mine"
    mine.write_text("name: [", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML at line"):
        load_space(mine)


@pytest.mark.parametrize(("step", "widths"), [(1, "1, 2, 3"), (4, "4, 12, 20"), (12, "12, 36, 60")])
def test_steps_to_widths_that_no_kernel_likes_are_named(step, widths):
    axes = {"hidden": {"select": "count", "step": step}, "neurons": {"per": "layer", "select": "count"}}
    said = parse_space({"name": "mine", "axes": axes}, "x").width_warning()
    assert said.startswith(f"space 'mine': axes.hidden.step {step} gives widths such as {widths}, for which")
    axes["neurons"]["step"] = 1
    assert " and axes.neurons.step 1 gives" in parse_space({"name": "mine", "axes": axes}, "x").width_warning()


def test_the_spaces_that_come_with_it_have_even_widths():
    assert [load_space(name).width_warning() for name in space_names()] == [None] * len(space_names())
