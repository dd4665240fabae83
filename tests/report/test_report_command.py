import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_run import finished_run, make_trials, write_run

import slm_ray
from slm_ray.report import build_report
from slm_ray.report.command import main
from slm_ray.runtime.commands import run_command

ROOT = Path(slm_ray.__file__).parents[1]
FILES = ("front.csv", "front.png", "report.md", "report.html")


def test_every_run_named_is_rebuilt_and_the_paths_are_printed(tmp_path, capsys):
    folders = [finished_run(tmp_path / "a", 20), write_run(tmp_path / "b", make_trials(5), None)]
    assert run_command(main, [str(folder) for folder in folders]) == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(folder / name) for folder in folders for name in FILES]
    assert output.err.count("note: ") == 1 and "has not finished" in output.err
    assert all((folder / name).stat().st_size for folder in folders for name in FILES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "RUN"), (["{tmp}/nowhere"], "is missing"), (["{tmp}"], "holds no run"), (["x", "--debgu"], "--debug")],
)
def test_a_mistake_is_one_sentence_and_exit_2(tmp_path, capsys, arguments, said):
    assert run_command(main, [argument.format(tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_nothing_is_written_when_one_folder_is_wrong(tmp_path):
    folder = finished_run(tmp_path / "a", 10)
    assert run_command(main, [str(folder), str(tmp_path / "b")]) == 2
    assert not (folder / "report.html").exists()


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert run_command(main, [str(tmp_path / "x"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    folder = finished_run(tmp_path / "a", 10)
    (folder / "report.html").mkdir()
    assert run_command(main, [str(folder)]) == 2
    error = capsys.readouterr().err
    assert "report.html" in error and "it is a folder" in error and error.count("\n") == 1


def test_a_rebuilt_report_is_the_same(tmp_path):
    folder = finished_run(tmp_path, 30)
    first = [path.read_bytes() for path in build_report(folder)]
    assert [path.read_bytes() for path in build_report(folder)] == first


def test_the_module_runs_without_torch(tmp_path):
    folder = finished_run(tmp_path, 10)
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['report', {str(folder)!r}]\n"
        "try:\n    runpy.run_module('slm_ray.report', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'ray', 'pymoo'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(folder / name) for name in FILES]


def test_importing_the_package_leaves_matplotlib_for_later():
    code = "import sys, slm_ray.report; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
