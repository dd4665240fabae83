"""Configs: flags over a YAML file over defaults, nested components with flat names, every mistake at once."""

from __future__ import annotations

import argparse
from typing import Literal

import pytest
from pydantic import model_validator

from slm_ray.config.base import (
    Config,
    Count,
    Names,
    Numbers,
    Text,
    add_flags,
    build_config,
    flatten,
    given_flags,
    load_config,
    option,
    options_of,
    refuse_changes,
)
from slm_ray.config.errors import ConfigError, UserError
from slm_ray.config.parser import Parser


class Optimizer(Config):
    """A component, with a rule between its fields."""

    rate: float = option(0.5, "mutation rate, 50% by default", ge=0)
    floor: float | None = option(None, "smallest rate", ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Optimizer:
        if self.floor is not None and self.floor > self.rate:
            raise ValueError(f"--floor must be at most --rate, got {self.floor:g} and {self.rate:g}")
        return self


class Options(Config):
    """A stage's config."""

    optimizer: Optimizer = Optimizer()
    trials: Count = option(100, "how many candidates", ge=1)
    space: Literal["fine", "coarse", "depth"] = option("fine", "search space")
    teacher: str | None = option(None, "teacher")
    budget: Text | None = option(None, "budget")
    seeds: Numbers = option((0,), "seeds")
    names: Names = option((), "names", metavar="A,B")
    dry_run: bool = option(False, "spend nothing")
    picture: bool = option(True, "draw a picture")


def _load(yaml: str | None, tmp_path, *flags: str) -> Options:
    parser: argparse.ArgumentParser = Parser(prog="search")
    add_flags(parser, Options)
    file = None
    if yaml is not None:
        file = tmp_path / "run.yaml"
        file.write_text(yaml, encoding="utf-8")
    return load_config(Options, file, vars(parser.parse_args(flags)))


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    config = _load("trials: 7\nspace: depth\n", tmp_path, "--trials", "1_000")
    assert config == Options(trials=1000, space="depth") and config.optimizer.rate == 0.5


def test_switches_go_both_ways(tmp_path):
    config = _load(None, tmp_path, "--dry-run", "--no-picture")
    assert config.dry_run
    assert not config.picture
    assert not _load("dry_run: true", tmp_path, "--no-dry-run").dry_run


def test_components_nest_and_names_do_not(tmp_path):
    words = ("--trials", "20k", "--names", "a,b", "--names", "c")
    config = _load("rate: 0.25\nbudget: 0.5\nseeds: [1, 2]\n", tmp_path, *words)
    assert config.optimizer == Optimizer(rate=0.25) and (config.trials, config.budget) == (20_000, "0.5")
    assert (config.seeds, config.names) == ((1, 2), ("a", "b", "c"))
    assert options_of(Options)["rate"].path == ("optimizer", "rate")
    assert build_config(Options, flatten(config)) == config
    words = tuple(given_flags(config))
    assert words[:4] == ("--rate", "0.25", "--trials", "20000") and _load(None, tmp_path, *words) == config
    assert config.replace(rate=1, picture=False).optimizer.rate == 1.0
    with pytest.raises(ConfigError, match="--rate: must be at least 0"):
        config.replace(rate=-1)
    with pytest.raises(Exception, match="frozen"):
        config.trials = 3

    class Twice(Config):
        optimizer: Optimizer = Optimizer()
        rate: float = option(1, "again")

    with pytest.raises(TypeError, match="option rate is declared twice"):
        options_of(Twice)


def test_a_rule_between_fields_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"--floor must be at most --rate, got 2 and 0\.5"):
        _load("floor: 2", tmp_path)


def test_a_login_in_an_option_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--teacher: has a login or key in it"):
        _load("teacher: s3://me:password@bucket/x", tmp_path)


def test_a_resume_changes_only_what_decides_nothing(tmp_path):
    refuse_changes({"trials": 3}, ("trials",), tmp_path)
    with pytest.raises(UserError, match=r"--seeds cannot be changed when .* is resumed \(only --trials can\)"):
        refuse_changes({"trials": 3, "seeds": 1}, ("trials",), tmp_path)


def test_all_mistakes_are_found_at_once_with_the_nearest_names(tmp_path):
    with pytest.raises(ConfigError) as raised:
        _load("trails: 5\nspace: fines\nrate: -1\ndry_run: 3\n", tmp_path, "--trials", "none")
    message = str(raised.value)
    assert len(raised.value.problems) == 5
    assert message.startswith(f"{tmp_path / 'run.yaml'}: 5 mistakes:")
    assert "did you mean 'trials'?" in message
    assert "did you mean 'fine'?" in message
    assert "--rate: must be at least 0, got -1" in message
    assert "--dry-run: must be true or false, got 3" in message
    assert "--trials: 'none' is not a number: write it like" in message


@pytest.mark.parametrize(
    "value", ["0", "-3", "1.5", "true", "[1]", "{a: 1}", ".inf", ".nan", "2020-01-01", "null", "x"]
)
def test_what_is_no_count_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"--trials: (must|'x' is not a number)"):
        _load(f"trials: {value}", tmp_path)


@pytest.mark.parametrize("value", ["true", "[1]", "{a: 1}", ".nan", "2020-01-01", "x"])
def test_what_is_no_number_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match="--rate: must"):
        _load(f"rate: {value}", tmp_path)


def test_bad_yaml_names_its_line(tmp_path):
    with pytest.raises(UserError, match=r"run\.yaml is not valid YAML at line 2, column"):
        _load("trials: 5\nspace: fine: coarse\n", tmp_path)
    with pytest.raises(UserError, match="must hold a mapping of option names to values, got list"):
        _load("- trials\n", tmp_path)


def test_yaml_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_config(Options, tmp_path / "none.yaml", {})
    with pytest.raises(UserError, match="is a folder"):
        load_config(Options, tmp_path, {})
    (tmp_path / "latin.yaml").write_bytes("teacher: é".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        load_config(Options, tmp_path / "latin.yaml", {})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trails", "5"], r"unknown argument '--trails': did you mean '--trials'\?"),
        (["--trial=5"], "unknown argument '--trial'"),
        (["--trials"], "expected one argument"),
    ],
)
def test_a_wrong_flag_is_one_sentence(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        _load(None, tmp_path, *flags)


def test_help_shows_every_option_and_its_default(capsys):
    parser = Parser(prog="search")
    add_flags(parser, Options)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "mutation rate, 50% by default [default: 0.5]" in text
    assert "search space (fine, coarse, depth) [default: fine]" in text
