import base64
import hashlib
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest
from synthetic_run import CONFIG, finished_run, make_result, make_trials, write_run

from slm_ray.report import build_report, load_run
from slm_ray.report.payload import script_json
from slm_ray.report.search_page import report_page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{script}}"
VOID = {"meta", "img", "br", "input", "link"}


class Outline(HTMLParser):
    """Collects tags and fails on one that is closed without being open."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(page):
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser


def page_json(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_the_page_needs_nothing_from_outside(tmp_path):
    page = report_page(load_run(finished_run(tmp_path)))
    assert outline(page).links == []
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in page and "url(" not in page.replace("url(#", "") and "{{" not in page


def test_only_the_pages_own_script_may_run(tmp_path):
    page = report_page(load_run(finished_run(tmp_path)))
    allowed = re.search(r"script-src 'sha256-([^']+)'", page).group(1)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts] == [allowed]


def test_names_are_shown_and_never_run(tmp_path):
    trials = make_trials(12)
    result = make_result(trials, command=EVIL)
    result["teacher"]["name"] = result["baselines"][0]["name"] = EVIL
    folder = write_run(tmp_path, trials, result, config={**CONFIG, "space": EVIL, EVIL: EVIL})
    (folder / "environment.json").write_text(json.dumps({EVIL: EVIL, "packages": {EVIL: EVIL}}))
    page = report_page(load_run(folder))
    assert page.count("<script") == 2 and "<img" not in page
    assert page_json(page)["front"]["teacher"]["name"] == EVIL
    outline(page)


def test_script_json_cannot_leave_its_tag():
    text = script_json({"a": "</script><!--\u2028"})
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == {"a": "</script><!--\u2028"}


def test_the_data_of_the_pictures(tmp_path):
    run = load_run(finished_run(tmp_path))
    page = page_json(report_page(run))
    data = page["front"]
    assert len(data["front"]) == len(run.front) and data["front"][data["best"]]["winner"] == 0
    assert data["teacherShape"]["heads"] == [9] * 30
    assert data["baselines"][-1]["row"] == 0
    assert any("held-out perplexity" in fact for fact in data["front"][0]["facts"])
    assert len(page["progress"]["values"]) == 10 and page["front-shape"] == {"of": "front"}


def test_the_page_can_be_read_without_seeing_it(tmp_path):
    tags = outline(report_page(load_run(finished_run(tmp_path)))).tags
    names = [tag for tag, _ in tags]
    assert names.count("caption") == names.count("table") > 0
    assert ("html", {"lang": "en"}) in tags
    assert all("scope" in attrs for tag, attrs in tags if tag == "th")
    assert all(attrs.get("aria-label") for tag, attrs in tags if attrs.get("role") == "region")


@pytest.mark.parametrize(
    "changes",
    [
        {"front": [], "winners": []},
        {"baselines": []},
        {"teacher": None},
        {"hypervolume": []},
        {"spent": {"seconds": {}}},
        {"budget": None, "corpus": None, "command": None},
    ],
)
def test_the_page_is_whole_whatever_is_missing(tmp_path, changes):
    trials = make_trials(20, num_failed=3)
    page = report_page(load_run(write_run(tmp_path, trials, make_result(trials, **changes))))
    outline(page)
    page_json(page)


@pytest.mark.parametrize("count", [0, 1])
def test_the_page_of_hardly_any_trials(tmp_path, count):
    trials = make_trials(count)
    outline(report_page(load_run(write_run(tmp_path / "a", trials, None))))
    outline(report_page(load_run(write_run(tmp_path / "b", trials, make_result(trials)))))


def test_a_thousand_trials_are_quick_and_small(tmp_path):
    folder = finished_run(tmp_path, 1000)
    start = time.process_time()
    paths = build_report(folder)
    assert time.process_time() - start < 5
    assert [path.name for path in paths] == ["front.csv", "front.png", "report.md", "report.html"]
    assert (folder / "report.html").stat().st_size < 8e6


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_scripts_are_valid_javascript(tmp_path):
    page = report_page(load_run(finished_run(tmp_path / "run", 10)))
    (tmp_path / "page.js").write_text(re.search(r"<script>(.*?)</script>", page, re.DOTALL).group(1))
    subprocess.run(["node", "--check", str(tmp_path / "page.js")], check=True)
