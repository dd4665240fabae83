"""Prompts from the package and from files, and what bad files get."""

from __future__ import annotations

import pytest

from slm_ray.config.errors import UserError
from slm_ray.evaluate.generation import Prompt, load_prompts, prompts_digest


def test_the_bundled_prompts_are_varied_and_have_references():
    prompts = load_prompts("default", require_references=True)
    assert len(prompts) >= 20
    assert {"story", "fact", "code-docs", "swahili"} <= {prompt.domain for prompt in prompts}
    assert [Prompt.model_validate(prompt.model_dump()) for prompt in prompts] == prompts


def test_fields_of_a_file(tmp_path):
    file = tmp_path / "mine.jsonl"
    lines = [
        '{"prompt": "A", "reference": "two"}',
        "",
        '{"text": "Mto\\u2028", "references": ["a", "b"], "id": 7, "group": "s"}',
    ]
    file.write_text("\n".join(lines))
    first, second = load_prompts(str(file), require_references=True)
    assert first == Prompt(text="A", references=("two",), id="line-1", domain="all")
    assert second == Prompt(text="Mto\u2028", references=("a", "b"), id="7", domain="s")


def test_a_text_file_has_a_prompt_per_line(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffHabari ya\r\n\r\nThe river\n".encode())
    assert [prompt.text for prompt in load_prompts(str(file))] == ["Habari ya", "The river"]


def test_the_digest_is_of_texts_and_references():
    one = Prompt(text="a", id="1")
    digests = {prompts_digest([one]), prompts_digest([one, Prompt(text="b", id="2")])}
    digests |= {prompts_digest([Prompt(text="a", id="1", references=("c",))])}
    assert len(digests) == 3 and prompts_digest([Prompt(text="a", id="1")]) in digests


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.txt", "\n \n", "is empty"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"', "line 2 is not a prompt \\(Invalid JSON"),
        ("a.jsonl", '["x"]', "line 1 is not a prompt"),
        ("a.jsonl", '{"prompt": " "}', "line 1 is not a prompt .*is empty"),
        ("a.jsonl", '{"question": "x"}', "line 1 is not a prompt \\(prompt: Field required"),
        ("a.jsonl", '{"prompt": "x", "references": [1]}', "line 1 is not a prompt \\(references"),
        ("a.jsonl", '{"prompt": "x", "reference": {}}', "line 1 is not a prompt \\(reference: "),
        ("a.jsonl", '{"prompt": "x", "id": 1}\n{"prompt": "y", "id": "1"}', "line 2 has the id '1' of line 1"),
        ("a.jsonl", '{"prompt": "x", "reference": "y"}\n\n{"prompt": "z"}', "1 of the 2 in .* first line 3"),
        ("a.jsonl", '{"prompt": "x", "references": []}', "first line 1"),
        ("a.txt", "x", "a .txt file has none"),
        ("a.csv", "x", "is not a .jsonl or .txt file"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", None, "is not a .jsonl or .txt file"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path, name, content, said):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said) as error:
        load_prompts(str(file), require_references=True)
    assert "\n" not in str(error.value)
