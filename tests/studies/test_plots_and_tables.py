"""Plot data, tables for people, and W&B's sweep file."""

import pytest
import yaml

from slm_ray.config.errors import UserError
from slm_ray.studies.finish import wandb_sweep
from slm_ray.studies.plot_data import best_lines, make_plot
from slm_ray.studies.plots import draw
from slm_ray.studies.reader import parse_sweep
from slm_ray.studies.table import as_markdown, as_parquet, as_text

ROWS = [
    {"sweep": "s", "point": number, "tokens": tokens, "optimizer": optimizer, "status": "done", "loss": loss}
    for number, (tokens, optimizer, loss) in enumerate(
        [("20k", "adamw", 3.0), ("40k", "adamw", 2.0), ("20k", "adamw", 4.0), ("20k", "lion", 5.0)]
    )
]


def test_rows_of_one_group_at_one_place_are_averaged(tmp_path):
    data = make_plot("a", {"x": "tokens", "y": "loss", "group": "optimizer", "log": ["x", "y"]}, ROWS)
    rows = [(row["series"], row["x"], row["y"], row.get("low"), row.get("high")) for row in data.rows]
    assert rows == [("adamw", 2e4, 3.5, 3.0, 4.0), ("adamw", 4e4, 2.0, 2.0, 2.0), ("lion", 2e4, 5.0, None, None)]
    assert data.log_x and data.log_y
    assert draw(data, tmp_path).stat().st_size > 5000


def test_names_along_the_axis_are_categories(tmp_path):
    data = make_plot("b", {"x": "optimizer", "y": "loss", "log": ["x"], "where": {"tokens": "20k"}}, ROWS)
    assert data.categories == ("adamw", "lion") and not data.log_x
    assert [(row["x"], row["y"]) for row in data.rows] == [("adamw", 3.5), ("lion", 5.0)]
    assert draw(data, tmp_path).name == "b.png"
    with pytest.raises(UserError, match=r"no column 'los'.*did you mean 'loss'"):
        make_plot("c", {"x": "tokens", "y": "los"}, ROWS)


def test_the_best_of_every_group_says_of_how_many():
    lines = best_lines({"by": ["optimizer"], "metric": "loss"}, ROWS)
    assert lines[1:] == ["  adamw: 2 at tokens=40k, of 3 points", "  lion: 5 at tokens=20k, of 1 points"]


def test_a_table_is_shown_short_and_kept_whole():
    rows = [{"point": 1, "params": 1_234_567, "loss": 1.23456, "error": None, "task": "x"}, {"point": 2, "mixed": True}]
    assert as_text(rows).splitlines() == [
        "point  params  loss   mixed",
        "1      1.23M   1.235",
        "2                     yes",
    ]
    assert as_markdown(rows).splitlines()[2] == "| 1 | 1.23M | 1.235 |  |"
    assert as_parquet(rows)[:4] == b"PAR1"


def test_a_wandb_sweep_is_the_same_product():
    content = {
        "stage": "pretrain", "base": {"scratch": "1M", "tokens": "20k"}, "grid": {"seed": ["0", "1"]},
        "search": {"tries": 3, "fields": {"learning-rate": {"low": 1e-4, "high": 1e-2, "log": True}}},
    }  # fmt: skip
    found = yaml.safe_load(wandb_sweep(parse_sweep(content, "mine.yaml", None, [], "mine")))
    assert found["method"] == "random"
    assert found["parameters"]["seed"] == {"values": ["0", "1"]}
    assert found["parameters"]["learning-rate"] == {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}
    assert found["command"][3] == "slm_ray.pretrain"
    zipped = content | {"zip": {"floor": [0.1, 0.2], "warmup": [0.1, 0.2]}}
    with pytest.raises(UserError, match="is a product of values"):
        wandb_sweep(parse_sweep(zipped, "mine.yaml", None, [], "mine"))
