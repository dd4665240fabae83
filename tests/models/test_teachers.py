import json
import shutil
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    LlavaConfig,
    PreTrainedTokenizerFast,
)

from slm_ray.config.errors import UserError
from slm_ray.models import teachers
from slm_ray.models.extraction import extract
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.teacher_sizes import look_up_teacher
from slm_ray.models.teachers import MANIFEST_FILE, WEIGHTS_FILE, load_teacher
from slm_ray.records.subnet import SubnetSpec, full_subnet
from tests.models.tiny import axis_specs, tiny_config, tiny_family, tiny_ids, tiny_model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, a = 1, b = 2 and so on."""
    characters = {"<eos>": 0, **{character: number for number, character in enumerate(ascii_lowercase + "Ġ.", start=1)}}
    tokenizer = Tokenizer(models.BPE(characters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def save(model, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small Llama, saved as Hugging Face does."""
    return save(tiny_model("llama"), tmp_path / "llama")


def refuses(name: object, cache: Path) -> str:
    """What a user reads when a teacher is refused: one sentence, no file left half written."""
    with pytest.raises(UserError) as raised:
        load_teacher(str(name), cache)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 500
    assert not list(cache.rglob("*.tmp"))
    return message


def same_weights(teacher, model) -> bool:
    state, expected = teacher.state(), model.state_dict()
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox", "gpt2", "gemma3", "phi3"])
def test_a_folder_becomes_one_file_with_the_same_weights_and_logits(name, tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(name, dtype=dtype)
        teacher = load_teacher(str(save(model, tmp_path / str(dtype))), tmp_path / "cache")
        assert same_weights(teacher, model) and teacher.config().dtype == dtype
        assert teacher.dtype == ("fp32" if dtype == torch.float32 else "bf16")
        assert teacher.architecture() == teacher.family().architecture(model.config)
        assert teacher.tokenizer()("cab a")["input_ids"] == [3, 1, 2, 27, 1]
        again = AutoModelForCausalLM.from_pretrained(teacher.folder)
        with torch.no_grad():
            assert torch.equal(again(tiny_ids()).logits, model(tiny_ids()).logits)


def test_half_precision_becomes_full_and_shards_one_file(tmp_path):
    model = tiny_model("gpt_neox", dtype=torch.float16)
    folder = save(model, tmp_path / "sharded", max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    teacher = load_teacher(str(folder), tmp_path / "cache")
    assert same_weights(teacher, model.float()) and teacher.dtype == "fp16"
    assert [path.name for path in teacher.folder.glob("*.safetensors")] == [WEIGHTS_FILE]


def test_a_teacher_is_converted_once_and_known_by_its_content(folder, tmp_path, monkeypatch):
    first = load_teacher(str(folder), tmp_path / "cache")
    monkeypatch.setattr(teachers, "_load_pretrained", None)
    again = load_teacher(str(folder), tmp_path / "cache")
    copied = load_teacher(str(shutil.copytree(folder, tmp_path / "copy")), tmp_path / "cache")
    assert (again.digest, again.folder) == (first.digest, first.folder) == (copied.digest, copied.folder)


@pytest.mark.parametrize(("file", "damage"), [(WEIGHTS_FILE, "flip"), (WEIGHTS_FILE, "cut"), (MANIFEST_FILE, "empty")])
def test_a_damaged_cached_copy_is_made_again(folder, tmp_path, file, damage):
    teacher = load_teacher(str(folder), tmp_path / "cache")
    expected = {name: tensor.clone() for name, tensor in teacher.state().items()}
    data = bytearray((teacher.folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    data = {"flip": data, "cut": data[: len(data) // 2], "empty": b""}[damage]
    # As another file: the mapped one above must not change under the test.
    (teacher.folder / "damaged").write_bytes(data)
    (teacher.folder / "damaged").replace(teacher.folder / file)
    again = load_teacher(str(folder), tmp_path / "cache")
    assert again.digest == teacher.digest
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state().items())


def test_the_weights_in_another_type_are_made_once_and_writing_to_them_stays_in_memory(folder, tmp_path):
    teacher = load_teacher(str(folder), tmp_path / "cache")
    halves = teacher.state_as(torch.bfloat16)
    assert all(torch.equal(tensor, teacher.state()[name].bfloat16()) for name, tensor in halves.items())
    stamp = (teacher.folder / "bfloat16" / WEIGHTS_FILE).stat().st_mtime_ns
    teacher.state_as(torch.bfloat16)
    assert (teacher.folder / "bfloat16" / WEIGHTS_FILE).stat().st_mtime_ns == stamp
    assert teacher.state_as(torch.float32)["model.norm.weight"].dtype == torch.float32
    for tensor in teacher.state().values():
        tensor.zero_()
    assert same_weights(teacher, tiny_model("llama"))


def test_damaged_shards_are_named(tmp_path):
    folder = save(tiny_model("llama"), tmp_path / "sharded", max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[1].unlink()
    message = refuses(folder, tmp_path / "cache")
    assert f"only half there: 1 of {len(shards)} weight files are missing, first {shards[1].name}" in message
    for index in ("[]", "{}", '{"weight_map": 3}', "{"):
        (folder / "model.safetensors.index.json").write_text(index)
        assert "index" in refuses(folder, tmp_path / "cache")


def change(**fields):
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return apply


def write(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


def shorten(keep: int):
    def apply(folder: Path) -> None:
        (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:keep])

    return apply


def pickled(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "pytorch_model.bin")


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


QUANTISED = {"quant_method": "gptq", "bits": 4}
CODE = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        *((shorten(keep), "is damaged") for keep in (0, 5, 2000, -100)),
        *((write("config.json", text), "config.json") for text in ("", "{", "[]", "{}", '{"model_type": 3}', "\0")),
        (change(intermediate_size=20), "teacher"),
        (change(quantization_config=QUANTISED), "teacher"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), "has no *.safetensors weights"),
        (pickled, "only pickled weights, which can run code"),
        (without_tokenizer, "a teacher needs its tokenizer files"),
        (change(model_type="t5"), "'t5', which is not supported: use a teacher of one of gemma2, gemma3_text, gpt2"),
        (change(model_type="llama5"), "(the nearest is llama), or declare the family (docs/adding_a_family.md)"),
        (change(model_type="x", num_experts=8, kv_rank=4), "(the nearest is llama, without kv_rank, num_experts)"),
        (change(model_type="made_up", auto_map=CODE), "'made_up', which is not supported"),
    ],
)
def test_a_spoilt_folder_is_one_sentence(folder, tmp_path, spoil, says):
    (folder / "code.py").write_text("raise SystemExit('ran')")  # nobody's code runs
    spoil(folder)
    assert says in refuses(folder, tmp_path / "cache")


def student_of(name: str, spec_of):
    model, family = tiny_model(name), tiny_family(name)
    return extract(model.state_dict(), model.config, family, spec_of(family.architecture(model.config))), family


def test_a_student_whose_layers_differ_is_no_teacher(tmp_path):
    student, _ = student_of("llama", lambda teacher: axis_specs(teacher)["uneven neurons"])
    message = refuses(save(student, tmp_path / "student"), tmp_path / "cache")
    assert "whose layers differ in size, which cannot be a teacher" in message


def narrow(teacher) -> SubnetSpec:
    """A width of 30 that four heads do not divide, or that they and their own width do not fill."""
    full = full_subnet(teacher)
    return SubnetSpec(full.hidden[:30], full.layers[:2])


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2", "gpt2_scaled", "gemma3"])
def test_a_uniform_student_of_our_own_class_is_a_teacher(name, tmp_path):
    student, family = student_of(name, narrow)
    assert type(student) is family.student_class("ForCausalLM")
    teacher = load_teacher(str(save(student, tmp_path / "student")), tmp_path / "cache")
    assert teacher.family() is family and teacher.architecture() == family.architecture(student.config)
    ids = tiny_ids()
    runner = SubnetRunner(teacher.state(), teacher.config(), family)
    whole = extract(teacher.state(), teacher.config(), family, full_subnet(teacher.architecture()))
    with torch.no_grad():
        expected = student(ids).logits
        torch.testing.assert_close(whole(ids).logits, expected)
    losses = functional.cross_entropy(expected[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    torch.testing.assert_close(runner.token_losses(full_subnet(teacher.architecture()), ids), losses)


def vision_model(family: str):
    """A model of images and text whose text part is a tiny one of a family."""
    text, size = tiny_config(family).to_dict(), {"image_size": 28, "patch_size": 14}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **size}
    if family == "gemma3":
        tokens = {"image_token_index": 60, "boi_token_index": 58, "eoi_token_index": 59, "mm_tokens_per_image": 4}
        config = Gemma3Config(text_config=text, vision_config=vision, **tokens)
    else:
        vision |= {"model_type": "clip_vision_model", "projection_dim": 8}
        config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=60, tie_word_embeddings=False)
    return AutoModelForImageTextToText.from_config(config).eval()


@pytest.mark.parametrize("family", ["gemma3", "llama_untied"])
def test_the_text_part_of_a_model_of_images_is_a_teacher(family, tmp_path):
    whole = vision_model(family)
    whole.generation_config.update(do_sample=True, top_k=64)
    teacher = load_teacher(str(save(whole, tmp_path / "whole")), tmp_path / "cache")
    assert look_up_teacher(str(tmp_path / "whole")).architecture == teacher.architecture()
    text = AutoModelForCausalLM.from_pretrained(teacher.folder)
    with torch.no_grad():
        assert torch.equal(text(tiny_ids()).logits, whole(input_ids=tiny_ids()).logits)
    assert teacher.family() is tiny_family(family) and text.generation_config.top_k == 64
    assert teacher.generation_config().do_sample and teacher.config().tie_word_embeddings == (family == "gemma3")


def test_unsupported_features_of_a_family_are_named(tmp_path):
    parallel = tiny_model("stablelm", use_parallel_residual=True)
    says = "one norm for attention and MLP (use_parallel_residual), which is not supported in family 'stablelm'"
    assert says in refuses(save(parallel, tmp_path / "parallel"), tmp_path / "cache")


@pytest.mark.parametrize("content", [b"", b"GGUF" + bytes(200)])
def test_a_corrupt_gguf_file_is_one_sentence(tmp_path, content):
    (tmp_path / "teacher.gguf").write_bytes(content)
    assert "teacher.gguf" in refuses(tmp_path / "teacher.gguf", tmp_path / "cache")


def test_a_name_that_is_nothing_is_one_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "check the path of the .gguf file" in refuses("none.gguf", tmp_path / "cache")
    assert "is a file: give a model folder" in refuses(folder / "config.json", tmp_path / "cache")
    assert "no folder, no .gguf file and no hub id" in refuses(tmp_path / "none", tmp_path / "cache")
    assert "did you mean 'smollm2-135m'?" in refuses("smollm-135m", tmp_path / "cache")


def test_a_full_disk_during_conversion_leaves_no_half_teacher(folder, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(teachers, "save_file", full)
        assert "the disk is full" in refuses(folder, tmp_path / "cache")
    assert same_weights(load_teacher(str(folder), tmp_path / "cache"), tiny_model("llama"))
