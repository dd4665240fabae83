"""A model's folder in another Python process: with slm_ray, and where slm_ray cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slm_ray.models.extraction import extract, save_student
from slm_ray.models.scratch import POSITIONS, build_scratch, make_shape, with_positions
from tests.models.tiny import NAMES, VOCAB, axis_specs, tiny_family, tiny_ids, tiny_model

ROOT = Path(__file__).parents[2]
PROMPT = tiny_ids(batch=1, length=4)

LOAD_ALL = """
import json, pathlib, sys
students, order, root = sys.argv[1:]
if order == "no slm_ray":
    sys.modules["slm_ray"] = None  # importing it fails, also where it is installed
else:
    sys.path.insert(0, root)
if order.startswith("slm_ray first"):
    import slm_ray
if order == "slm_ray first, then a config":  # which loads the Auto classes while it is half imported itself
    from transformers import LlamaConfig
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
if order == "transformers first":
    import slm_ray
torch.set_num_threads(1)
torch.manual_seed(0)
for folder in sorted(pathlib.Path(students).iterdir()):
    is_plain = "auto_map" not in json.loads((folder / "config.json").read_text())
    flags = {} if is_plain or order != "no slm_ray" else {"trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(folder, **flags)
    assert is_plain == type(model).__module__.startswith("transformers.models."), type(model)
    expected = torch.load(folder / "expected.pt")
    with torch.no_grad():
        assert torch.equal(model(expected["ids"]).logits, expected["logits"]), folder
    tokens = model.generate(expected["ids"], max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(tokens, expected["tokens"]), folder
    print(folder.name, type(model).__name__)
"""


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> Path:
    """Per family a plain student (where there is one) and one whose layers differ, with what they must compute; and a
    model of each kind of positions."""
    root = tmp_path_factory.mktemp("students")
    for positions in POSITIONS:
        shape = with_positions(make_shape(VOCAB, 64, 2, 64), positions, 16)
        keep(build_scratch(shape, positions, seed=0).eval(), root / f"positions-{positions}")
    for name in NAMES:
        model, family = tiny_model(name), tiny_family(name)
        specs = axis_specs(family.architecture(model.config))
        for axis in ("layers", "first attention", "everything"):
            student = extract(model.state_dict(), model.config, family, specs[axis])
            keep(student, root / f"{name}-{axis.replace(' ', '-')}")
    return root


def keep(student, folder: Path) -> None:
    """Save a model with what it computes."""
    save_student(student, folder)
    with torch.no_grad():
        logits = student(PROMPT).logits
    tokens = student.generate(PROMPT, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    torch.save({"ids": PROMPT, "logits": logits, "tokens": tokens}, folder / "expected.pt")


@pytest.mark.parametrize("order", ["no slm_ray", "slm_ray first", "slm_ray first, then a config", "transformers first"])
def test_students_load_and_compute_the_same(students, order, tmp_path):
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", LOAD_ALL, str(students), order, str(ROOT)]
    environment = {**os.environ, **home, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 3 * len(NAMES) + len(POSITIONS)


def test_the_plain_ones_need_no_code(students):
    for name in set(NAMES) - {"gpt2_scaled"}:
        folder = students / f"{name}-layers"
        assert not list(folder.glob("*.py"))
        assert "slm_ray" not in (folder / "config.json").read_text()


def test_the_others_say_their_sizes_layer_by_layer(students):
    config = json.loads((students / "llama-first-attention" / "config.json").read_text())
    assert config["per_layer_config"]["0"]["skip"] == ["attention"]
    assert config["num_hidden_layers"] == 3


def test_importing_slm_ray_imports_neither_torch_nor_transformers():
    code = "import slm_ray, sys; assert not {'torch', 'transformers', 'ray', 'numpy'} & set(sys.modules), 'slow'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
