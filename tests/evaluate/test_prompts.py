"""Prompts from the package and from files, and what bad files get."""

from __future__ import annotations

import pytest

from slm_ray.config.errors import UserError
from slm_ray.evaluate.generation import Prompt, load_prompts, prompts_digest


def test_the_bundled_prompts_are_varied_and_have_references():
    prompts = load_prompts("default", require_references=True)
    assert len(prompts) >= 20 and {"story", "fact", "code-docs", "swahili"} <= {prompt.domain for prompt in prompts}


def test_fields_of_files(tmp_path):
    file = tmp_path / "mine.jsonl"
    other = '{"text": "Mto\\u2028", "references": ["a", "b"], "id": 7, "group": "s"}'
    file.write_text("\n".join(['{"prompt": "A", "reference": "two"}', "", other]))
    first, second = load_prompts(str(file), require_references=True)
    assert first == Prompt(text="A", references=("two",), id="line-1", domain="all")
    assert second == Prompt(text="Mto\u2028", references=("a", "b"), id="7", domain="s")
    (tmp_path / "mine.txt").write_bytes("\ufeffHabari ya\r\n\r\nThe river\n".encode())
    assert [prompt.text for prompt in load_prompts(str(tmp_path / "mine.txt"))] == ["Habari ya", "The river"]
    others = [Prompt(text="a", id="1"), Prompt(text="b", id="1"), Prompt(text="a", id="1", references=("c",))]
    assert len({prompts_digest([prompt]) for prompt in others}) == 3


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.jsonl", "\n \n", "is empty"),
    ("a.jsonl", '{"prompt": "x"}\n{"prompt"', r"line 2 is not a prompt \(Invalid JSON"),
    ("a.jsonl", '["x"]', "line 1 is not a prompt"),
    ("a.jsonl", '{"prompt": " "}', "line 1 is not a prompt .*is empty"),
    ("a.jsonl", '{"question": "x"}', r"line 1 is not a prompt \(prompt: Field required"),
    ("a.jsonl", '{"prompt": "x", "references": [1]}', r"line 1 is not a prompt \(references"),
    ("a.jsonl", '{"prompt": "x", "id": 1}\n{"prompt": "y", "id": "1"}', "line 2 has the id '1' of line 1"),
    ("a.jsonl", '{"prompt": "x", "reference": "y"}\n\n{"prompt": "z"}', "1 of the 2 in .* first line 3"),
    ("a.txt", "x", "a .txt file has none"),
    ("a.txt", b"\xff\xfe", "not UTF-8"),
    ("a.jsonl", None, "is not a .jsonl or .txt file"),
])  # fmt: skip
def test_bad_files_get_one_sentence(tmp_path, name, content, said):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said) as error:
        load_prompts(str(file), require_references=True)
    assert "\n" not in str(error.value)
