"""Rows as lines whose columns stand under each other."""

from slm_ray.config.columns import aligned


def test_the_first_column_is_set_left_and_figures_right():
    assert aligned([("name", "n"), ("a", "1,000"), ("bcdef", "2")]) == ["name       n", "a      1,000", "bcdef      2"]


def test_columns_are_set_left_by_choice_and_nothing_ends_in_a_space():
    assert aligned([["a", "1", "note"], ["bb", "22", ""]], left={0, 2}) == ["a    1  note", "bb  22"]
    assert aligned([["only a header", ""]]) == ["only a header"]
