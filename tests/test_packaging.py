import json
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import slm_ray

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def _folder_of(package: str) -> Path:
    mapped = SETUPTOOLS["package-dir"].get(package)
    return ROOT / (mapped or package.replace(".", "/"))


def test_every_package_of_the_tree_is_listed():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "slm_ray").rglob("__init__.py")}
    assert found | {"slm_ray.search_spaces"} == set(SETUPTOOLS["packages"])


def test_every_file_that_is_no_python_is_package_data():
    declared = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in _folder_of(package).glob(pattern)
    }
    folders = [ROOT / "slm_ray", ROOT / "search_spaces"]
    needed = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    needed = {path for path in needed if path.suffix not in (".py", ".pyc")}
    assert {path.relative_to(ROOT) for path in needed} == {path.relative_to(ROOT) for path in declared}


def test_the_console_script_is_the_command_line():
    (script,) = metadata.entry_points(group="console_scripts", name="slm-ray")
    from slm_ray.cli import main

    assert script.load() is main


def test_the_licence_is_the_one_declared():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0" in text


def test_the_changelog_has_the_version_of_the_package():
    version = PROJECT["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert metadata.version("slm-ray") == version == slm_ray.__version__


@pytest.mark.slow
def test_an_installed_wheel_has_its_spaces_and_templates(tmp_path):
    _build_wheel(tmp_path)
    _pip("install", "--no-deps", "--target", str(tmp_path / "site"), *map(str, tmp_path.glob("*.whl")))
    program = (
        "import json, slm_ray\n"
        "from importlib import resources\n"
        "from slm_ray.search.space import load_space, space_names\n"
        "spaces = {name: load_space(name).digest for name in space_names()}\n"
        "page = (resources.files('slm_ray.report') / 'templates/page.html').read_text()\n"
        "print(json.dumps({'file': slm_ray.__file__, 'spaces': spaces, 'page': len(page)}))\n"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    from slm_ray.search.space import load_space, space_names

    found = json.loads(done.stdout)
    assert found["file"].startswith(str(tmp_path / "site"))
    assert found["spaces"] == {name: load_space(name).digest for name in space_names()}
    assert found["page"] > 0


def _build_wheel(folder: Path) -> None:
    """Build from a copy, so that nothing is left in the tree."""
    source = folder / "source"
    for name in ("slm_ray", "search_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True, capture_output=True, timeout=300)
