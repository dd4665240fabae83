import subprocess
import sys

import pytest

import slm_ray
from slm_ray.cli import STAGES, dispatch
from slm_ray.runtime.commands import run_command


def test_help_names_every_stage(capsys):
    assert run_command(dispatch, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: slm-ray STAGE")
    assert all(f"\n  {name}" in shown and stage.summary in shown for name, stage in STAGES.items())


def test_version_is_the_packages(capsys):
    assert run_command(dispatch, ["--version"]) == 0
    assert capsys.readouterr().out == f"slm-ray {slm_ray.__version__}\n"


@pytest.mark.parametrize("given, offered", [("serch", "did you mean 'search'?"), ("reports", "did you mean 'report'?")])
def test_an_unknown_stage_gets_the_nearest_one_and_status_2(capsys, given, offered):
    assert run_command(dispatch, [given, "--space", "fine"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: unknown stage '{given}': {offered}")
    assert output.err.count("\n") == 1


def test_no_stage_at_all_is_a_sentence_and_status_2(capsys):
    assert run_command(dispatch, []) == 2
    stages = ", ".join(sorted(STAGES))
    assert capsys.readouterr().err == f"error: name a stage: {stages} (see slm-ray --help)\n"


def test_a_stage_gets_the_rest_of_the_arguments(capsys, tmp_path):
    assert run_command(dispatch, ["report", str(tmp_path / "nothing")]) == 2
    assert "nothing is missing" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_shows_its_options(capsys, stage):
    with pytest.raises(SystemExit) as ended:
        dispatch([stage, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m slm_ray.{stage}" in capsys.readouterr().out


def test_a_mistake_in_a_command_waits_for_no_import():
    """What takes seconds to import is not needed to read a command line, nor to refuse it."""
    code = f"from slm_ray.cli import parser_of\nfor name in {sorted(STAGES)}: parser_of(name)\nimport sys\n"
    code += "print({'torch', 'ray', 'transformers', 'datasets', 'wandb', 'altair'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_report_needs_no_torch_and_starts_no_ray(tmp_path):
    program = (
        "import sys\n"
        "from slm_ray.cli import dispatch\n"
        "from slm_ray.runtime.commands import run_command\n"
        f"assert run_command(dispatch, ['report', {str(tmp_path)!r}]) == 2\n"
        "print(sorted({'torch', 'transformers', 'ray', 'pymoo'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "[]\n"


def test_the_module_is_the_console_script():
    done = subprocess.run(
        [sys.executable, "-m", "slm_ray.cli", "bogus"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown stage 'bogus'")
