import pytest
from synthetic_proxies import proxies_run
from synthetic_run import make_result, make_trials, write_run
from test_report_page import outline, page_json

from slm_ray.report import load_run
from slm_ray.report.command import main
from slm_ray.report.proxies import correlations_table, load_proxies, proxy_costs, proxy_panels
from slm_ray.report.search_page import report_page
from slm_ray.runtime.commands import run_command

FILES = ["proxies.png", "report.md", "report.html"]


def test_each_proxy_has_a_panel_with_its_correlation_and_interval(tmp_path, capsys):
    folder = proxies_run(tmp_path / "p")
    assert run_command(main, [str(folder)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / name) for name in FILES]
    run = load_proxies(folder)
    assert len(run.candidates) == 13 and len(run.trained) == 12
    panels = proxy_panels(run)
    assert [panel.title for panel in panels] == ["perplexity", "params"]
    assert panels[0].note == "tau +0.90 (+0.60 to +1.00), rho +0.90 (+0.60 to +1.00)"
    assert panels[1].note == "tau undefined, rho undefined"
    assert [(point.x, point.y) for point in panels[0].points[:2]] == [(150.0, 4.0), (146.0, 3.95)]
    page = (folder / "report.html").read_text()
    outline(page)
    assert len(page_json(page)["proxies"]["panels"][0]["points"]) == 12
    assert "the loss is nan" in page


def test_the_table_and_the_cost(tmp_path):
    run = load_proxies(proxies_run(tmp_path))
    rows = {row[0]: row for row in correlations_table(run).rows}
    assert rows["perplexity"][1:3] == ("less", "+0.90 (+0.60 to +1.00)")
    assert rows["short training"][-3:-1] == ("10T", "1 min 00 s")
    assert [(cost.what, cost.flops) for cost in proxy_costs(run)] == [
        ("proxies of all candidates", 13e12 + 4e12), ("short training of all candidates", 13e13),
    ]  # fmt: skip


def test_an_unfinished_run_has_panels_without_correlations(tmp_path, capsys):
    folder = proxies_run(tmp_path / "p", finished=False)
    with (folder / "candidates.jsonl").open("a") as file:
        file.write('{"trial": 13, "stat')
    assert run_command(main, [str(folder)]) == 0
    assert "has not finished" in capsys.readouterr().err
    assert proxy_panels(load_proxies(folder))[0].note == "no correlation yet"
    outline((folder / "report.html").read_text())


def test_a_searchs_finalists_are_held_against_its_proxies(tmp_path):
    trials = make_trials(40)
    result = make_result(trials)
    for place, entry in enumerate(result["front"][:4]):
        entry["short_training"] = {"tokens": 2048, "loss": 4.0 - 0.1 * place, "first_loss": 5.0}
    result["front"][4]["short_training"] = {"tokens": 0, "loss": None, "error": "nan"}
    data = page_json(report_page(load_run(write_run(tmp_path, trials, result))))
    panels = {panel["title"]: panel for panel in data["finalists"]["panels"]}
    assert set(panels) == {"perplexity", "params"} and len(panels["params"]["points"]) == 4
    # The front is written from small to large: perplexity falls as the loss does, and more parameters mean less loss.
    assert panels["params"]["note"].startswith("tau +1.00, rho +1.00 over 4 finalists")


@pytest.mark.parametrize("count", [0, 1])
def test_without_trained_finalists_there_is_no_such_section(tmp_path, count):
    trials = make_trials(20)
    result = make_result(trials)
    for entry in result["front"][:count]:
        entry["short_training"] = {"tokens": 2048, "loss": 4.0, "first_loss": 5.0}
    page = report_page(load_run(write_run(tmp_path, trials, result)))
    assert "finalists" not in page_json(page)
