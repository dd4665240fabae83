"""What a user does with a student: generate, train, look inside, save and load, with and without slm_ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slm_ray.models.extraction import extract, save_student
from slm_ray.models.scratch import POSITIONS, build_scratch, make_shape, with_positions
from tests.models.test_teachers import make_tokenizer
from tests.models.tiny import ALL, VOCAB, axis_specs, tiny_family, tiny_ids, tiny_model

ROOT = Path(__file__).parents[2]
PROMPT = tiny_ids(batch=2, length=5)
# Of the families, one student whose layers differ each; of two, a plain one as well
STUDENTS = [(name, "everything") for name in ALL] + [
    (name, axis) for name in ("llama", "gpt2") for axis in ("layers", "first attention")
]


def student_of(name: str, axis: str, dtype: torch.dtype = torch.float32):
    model, family = tiny_model(name, dtype=dtype), tiny_family(name)
    return extract(model.state_dict(), model.config, family, axis_specs(family.architecture(model.config))[axis])


def generate(student, prompt: torch.Tensor, **options) -> torch.Tensor:
    options.setdefault("attention_mask", torch.ones_like(prompt))
    return student.generate(prompt, max_new_tokens=10, min_new_tokens=10, do_sample=False, pad_token_id=0, **options)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2", "gemma3", "phi3"])
def test_beams_padding_and_static_caches_work(name):
    student = student_of(name, "first attention")
    beams = {"num_beams": 3, "length_penalty": 0.0}
    assert torch.equal(generate(student, PROMPT, **beams), generate(student, PROMPT, use_cache=False, **beams))
    assert torch.equal(generate(student, PROMPT, cache_implementation="static"), generate(student, PROMPT))
    padded = torch.cat([torch.zeros_like(PROMPT[:, :3]), PROMPT], dim=1)
    mask = torch.cat([torch.zeros_like(PROMPT[:, :3]), torch.ones_like(PROMPT)], dim=1)
    assert torch.equal(generate(student, padded, attention_mask=mask)[:, 3:], generate(student, PROMPT))


LOAD_ALL = """
import json, pathlib, sys
students, order, root = sys.argv[1:]
if order == "no slm_ray":
    sys.modules["slm_ray"] = None  # importing it fails, also where it is installed
else:
    sys.path.insert(0, root)
if order.startswith("slm_ray first"):
    import slm_ray
if order == "slm_ray first, then a search for transformers":  # as libraries do that can use it
    import importlib.util
    importlib.util.find_spec("transformers")
import torch, transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
if order == "transformers first":
    import slm_ray
torch.set_num_threads(1)
def near(a, b):  # grouped products of experts depend on where in memory weights lie
    return (a - b).abs().max() < 1e-5
torch.manual_seed(0)
folders = sorted(pathlib.Path(students).iterdir())
if order != "no slm_ray":
    folders = folders[::8]  # registered is registered: a few will tell
for folder in folders:
    is_plain = "auto_map" not in json.loads((folder / "config.json").read_text())
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=False)("cab")["input_ids"] == [3, 1, 2], folder
    if order == "no slm_ray" and not is_plain:
        for auto in (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification):
            try:
                auto.from_pretrained(folder, trust_remote_code=False)
            except ValueError as error:
                assert "trust_remote_code=True" in str(error), error
for folder in folders:
    is_plain = "auto_map" not in json.loads((folder / "config.json").read_text())
    flags = {} if is_plain or order != "no slm_ray" else {"trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(folder, **flags)
    print(folder.name, type(model).__name__)
    assert is_plain == type(model).__module__.startswith("transformers.models."), type(model)
    expected = torch.load(folder / "expected.pt")
    with torch.no_grad():
        assert near(model(expected["ids"]).logits, expected["logits"]), folder
        base = AutoModel.from_pretrained(folder, **flags)
        hidden = model.base_model(expected["ids"]).last_hidden_state
        assert near(base(expected["ids"]).last_hidden_state, hidden), folder
    tokens = model.generate(expected["ids"], max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(tokens, expected["tokens"]), folder
    if folder.name.startswith(("granite", "olmoe")):  # have no classifier
        continue
    judge = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, pad_token_id=0, **flags)
    assert judge(expected["ids"]).logits.shape == (1, 3)
    assert near(judge.base_model(expected["ids"]).last_hidden_state, hidden), folder
"""


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> Path:
    """``STUDENTS`` and a model of each kind of positions, with what they must compute."""
    root = tmp_path_factory.mktemp("students")
    for positions in POSITIONS:
        shape = with_positions(make_shape(VOCAB, 64, 2, 64), positions, 16)
        keep(build_scratch(shape, positions, seed=0).eval(), root / f"positions-{positions}")
    for name, axis in STUDENTS:
        keep(student_of(name, axis), root / f"{name}-{axis.replace(' ', '-')}")
    return root


def keep(student, folder: Path) -> None:
    """Save a model with what it computes."""
    save_student(student, folder, make_tokenizer())
    prompt = PROMPT[:1]
    with torch.no_grad():
        logits = student(prompt).logits
    tokens = student.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    torch.save({"ids": prompt, "logits": logits, "tokens": tokens}, folder / "expected.pt")


@pytest.mark.parametrize(
    "order", ["no slm_ray", "transformers first", "slm_ray first, then a search for transformers"]
)
def test_folders_load_in_another_process_and_compute_the_same(students, order, tmp_path):
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_ALL, str(students), order, str(ROOT)],
        cwd=tmp_path, env={**os.environ, **home, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == (len(STUDENTS) + len(POSITIONS) if order == "no slm_ray" else 4)


def test_folders_say_what_they_are(students):
    for name in ("llama", "gpt2"):
        folder = students / f"{name}-layers"
        assert not list(folder.glob("*.py")) and "slm_ray" not in (folder / "config.json").read_text()
    config = json.loads((students / "gpt2-first-attention" / "config.json").read_text())
    assert config["per_layer_config"]["0"]["skip"] == ["attention"] and config["num_hidden_layers"] == 3
    assert set(config["auto_map"]) == {
        "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification",
    }  # fmt: skip
    assert config["per_layer_reason"] == "its layers differ in size"


def test_importing_slm_ray_imports_neither_torch_nor_transformers():
    code = "import slm_ray, sys; assert not {'torch', 'transformers', 'ray', 'numpy'} & set(sys.modules), 'slow'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
