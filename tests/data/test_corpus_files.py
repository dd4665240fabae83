import bz2
import gzip
import json
import lzma

import pyarrow
import pytest
from pyarrow import parquet

from slm_ray.config.errors import UserError
from slm_ray.data.files import LARGE_TEXT_CHARACTERS
from slm_ray.data.load import load_corpus
from slm_ray.data.split import summarise_parts

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}
TEXTS = ['first, with "quotes" and\na line', "zweite → 注意", "third"]


def read(path, text_field="text"):
    return [document.text for document in load_corpus(str(path), text_field)]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def message(path, text_field="text"):
    with pytest.raises(UserError) as caught:
        read(path, text_field)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_json_lines_with_objects_strings_blank_lines_and_nulls(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "n": 1}\n\n"two"\n{"text": null}\n{"text": " "}\n{"text": "\\ud800x"}')
    assert read(path) == ["one", "two", "\ufffdx"]
    assert [document.id for document in load_corpus(str(path))] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:6"]


def test_json_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"body": text} for text in TEXTS], indent=1))
    assert read(path, "body") == TEXTS


@pytest.mark.parametrize("delimiter, name", [(",", "a.csv"), ("\t", "a.tsv")])
def test_csv_and_tsv(tmp_path, delimiter, name):
    rows = "".join(f"1{delimiter}" + '"' + text.replace('"', '""') + '"\n' for text in TEXTS)
    (tmp_path / name).write_text(f"n{delimiter}text\n{rows}", encoding="utf-8")
    assert read(tmp_path / name) == TEXTS


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_tables(tmp_path, kind):
    texts = [f"row {number}" for number in range(600)]
    table = pyarrow.table({"n": list(range(600)), "text": texts})
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        with (pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file)(str(path), table.schema) as writer:
            writer.write_table(table)
    assert read(path) == texts


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_files_read_as_the_plain_ones(tmp_path, ending):
    lines = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    packed = tmp_path / f"a.jsonl{ending}"
    packed.write_bytes(COMPRESS[ending](lines.read_bytes()))
    assert read(packed) == TEXTS
    page = tmp_path / f"b.txt{ending}"
    page.write_bytes(COMPRESS[ending]("\ufeffeins\r\nzwei →".encode()))
    assert read(page) == ["eins\nzwei →"]


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_cut_compressed_file_is_named(tmp_path, ending, texts):
    data = COMPRESS[ending]("".join(texts).encode())
    (tmp_path / f"a.txt{ending}").write_bytes(data[: len(data) // 2])
    assert "is damaged or cut short" in message(tmp_path / f"a.txt{ending}")


def test_a_folder_is_read_recursively_sorted_and_without_what_accompanies_it(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    write_lines(tmp_path / "b" / "z.jsonl", [{"text": "three"}])
    write_lines(tmp_path / "b" / "c" / "a.jsonl", [{"text": "four"}])
    write_lines(tmp_path / "a.jsonl", [{"text": "one"}])
    (tmp_path / "b.txt").write_text("two")
    for name in ("README.md", ".hidden.txt", "code.py", "b/LICENSE.txt"):
        (tmp_path / name).write_text("not part of it")
    corpus = load_corpus(str(tmp_path))
    assert [document.text for document in corpus] == ["one", "two", "three", "four"]
    assert [document.id for document in corpus] == ["a.jsonl:1", "b.txt#1", "b/z.jsonl:1", "b/c/a.jsonl:1"]


def test_one_text_file_is_cut_into_documents_that_fill_all_three_parts(tmp_path, texts):
    whole = "\n\n".join(texts)
    (tmp_path / "book.txt").write_text(whole, encoding="utf-8")
    corpus = load_corpus(str(tmp_path / "book.txt"))
    assert "".join(document.text for document in corpus) == whole
    assert all(part["documents"] for part in summarise_parts(corpus).values())


def test_of_many_text_files_only_a_large_one_is_cut(tmp_path):
    for number in range(70):
        (tmp_path / f"{number:02}.txt").write_text(f"page {number}\n\n" * 2000)
    large = "a line of text\n" * (LARGE_TEXT_CHARACTERS // 15 + 1000)
    (tmp_path / "99.md").write_text(large)
    documents = list(load_corpus(str(tmp_path)))
    assert [document.id for document in documents[:70]] == [f"{number:02}.txt" for number in range(70)]
    assert "".join(document.text for document in documents[70:]) == large
    assert max(len(document.text) for document in documents[70:]) <= 8192 * 3 // 2


def test_the_digest_is_of_the_content_and_the_field_not_of_the_place(tmp_path):
    (tmp_path / "x").mkdir()
    records = [{"text": "one", "body": "two"}]
    first, second = write_lines(tmp_path / "a.jsonl", records), write_lines(tmp_path / "x" / "b.jsonl", records)
    assert load_corpus(str(first)).digest == load_corpus(str(second)).digest
    assert load_corpus(str(first)).digest != load_corpus(str(first), "body").digest
    before = load_corpus(str(first)).digest
    write_lines(first, [*records, {"text": "three"}])
    assert load_corpus(str(first)).digest != before


def test_bytes_that_are_no_utf8_are_found_and_the_fix_is_said(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (1 << 20) + "é".encode() + "caf\xe9 au lait".encode("latin1"))
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 text: convert it, e\.g\. `iconv"):
        list(load_corpus(str(path)))
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2, is not UTF-8 text"):
        list(load_corpus(str(lines)))


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl, line 2 is not JSON (Expecting value"),
        ("a.jsonl", '{"txt": "b"}\n', "a.jsonl, line 1 has no field 'text': did you mean 'txt'? (valid: txt)"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"txt": "b"}\n',
            "a.jsonl, line 2 has no field 'text', which those before it have: mend or remove it",
        ),
        ("a.jsonl", '{"text": "a"}\n{"text": 7}\n', "line 2: field 'text' must hold text, got int: mend or remove it"),
        ("a.jsonl", '{"text": 5}\n', "line 1: field 'text' must hold text, got int"),
        ("a.jsonl", "5\n", "line 1 must be an object with a field 'text' or a string, got int"),
        ("a.json", '[{"text": "a"},\n{"text"}]', "is not a JSON list (Expecting ':' delimiter, line 2"),
        ("a.json", '["a", {"body": "b"}]', "record 2 has no field 'text', which those before it have"),
        ("a.csv", "id,texts\n1,a\n", "row 1 has no field 'text': did you mean 'texts'?"),
        ("a.parquet", "PAR0", "is not a whole Parquet file"),
        ("a.arrow", "ARROW?", "is not a whole Arrow file"),
        ("a.txt", "", "a.txt is empty: give a corpus with text in it"),
        ("a.txt", " \n\n ", "has no text: give a corpus with at least one non-empty document"),
        ("a.jsonl", '{"text": ""}\n', "has no text"),
        ("a.pdf", "x", "is not of a kind that can be read (supported: .txt, .md, .jsonl"),
        ("a.parquet.gz", "x", "is not of a kind that can be read"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    assert said in message(tmp_path / name)
