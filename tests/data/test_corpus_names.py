import sys

import datasets
import pytest

from slm_ray.config.errors import UserError
from slm_ray.data import bundled
from slm_ray.data.config import DEFAULT_CORPUS
from slm_ray.data.load import load_corpus
from slm_ray.data.split import summarise_parts


@pytest.fixture
def hub_answers(monkeypatch):
    monkeypatch.setattr("slm_ray.data.load._check_hub", lambda name: None)


def message(name):
    with pytest.raises(UserError) as caught:
        load_corpus(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_the_default_corpus_documents_python_and_fills_every_part():
    corpus = load_corpus(DEFAULT_CORPUS)
    documents = {document.id: document.text for document in corpus}
    assert 'The "if" statement' in documents["topics/if"]
    assert documents["stdlib/json/__init__.py"].startswith("JSON (JavaScript Object Notation)")
    assert not any("/test/" in id or "site-packages" in id for id in documents)
    assert all(part["bytes"] > 100_000 for part in summarise_parts(corpus).values())


@pytest.fixture
def small_python(tmp_path, monkeypatch):
    library, packages = tmp_path / "lib", tmp_path / "packages"
    files = {
        library / "one.py": '"""Module one."""\ndef f():\n    """Does f."""\n',
        library / "none.py": "x = 1\n",
        library / "old.py": '"""Python 2."""\nprint "x"\n',
        library / "test" / "test_one.py": '"""A test."""\n',
        library / "site-packages" / "inside.py": '"""Not the library."""\n',
        packages / "pkg" / "__init__.py": '"""A package."""\n',
        packages / "pkg" / "tests" / "t.py": '"""Its test."""\n',
    }
    for path, source in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    paths = {"stdlib": str(library), "purelib": str(packages), "platlib": str(packages)}
    monkeypatch.setattr(bundled.sysconfig, "get_paths", lambda: paths)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    return library


def test_which_modules_are_read(small_python):
    assert [document.id for document in load_corpus("python-docs")] == ["stdlib/one.py"]
    full = [document.id for document in load_corpus("python-docs-full")]
    assert full == ["stdlib/one.py", "site-packages/pkg/__init__.py"]


def test_the_texts_are_kept_and_a_damaged_copy_is_made_again(small_python, own_cache, monkeypatch):
    corpus = load_corpus("python-docs")
    (kept,) = (own_cache / "corpora").iterdir()
    content = kept.read_text()
    kept.write_text(content.replace("Module", "Nodule"))
    assert list(load_corpus("python-docs")) == list(corpus)
    assert kept.read_text() == content
    monkeypatch.setattr(bundled, "module_text", None)
    assert list(load_corpus("python-docs")) == list(corpus)


def test_a_path_that_does_not_exist_gets_its_nearest_neighbour(tmp_path, monkeypatch):
    (tmp_path / "corpus.jsonl").write_text('"x"\n')
    assert message(f"{tmp_path}/corpus.json") == (
        f"{tmp_path}/corpus.json does not exist: did you mean '{tmp_path}/corpus.jsonl'?"
    )
    monkeypatch.chdir(tmp_path)
    assert "does not exist" in message("data/corpus.txt")
    assert "does not exist" in message("./data")
    (tmp_path / "data").mkdir()
    assert "data/corpus does not exist" in message("data/corpus")  # and not a dataset of the owner `data`


def test_a_dataset_is_not_waited_for_without_a_hub(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", None)  # it tries for half a minute
    assert message("owner/name").startswith("cannot read 'owner/name' from the Hugging Face hub (")


def test_a_hub_dataset_is_streamed_from_its_train_split(monkeypatch, hub_answers):
    calls = []

    def load_dataset(*args, **options):
        calls.append((args, options))
        return [{"text": "one"}, {"text": ""}, {"text": "two"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = load_corpus("owner/name:config")
    assert [document.text for document in corpus] == ["one", "two"]
    assert calls[-1] == (("owner/name", "config"), {"split": "train", "streaming": True})
    assert corpus.digest is None
    assert not corpus.is_finite
    load_corpus("owner/name")
    assert calls[-1][0] == ("owner/name", None)
    with pytest.raises(UserError, match="record 1 of 'owner/name' has no field 'txt': did you mean 'text'"):
        load_corpus("owner/name", "txt")


@pytest.mark.parametrize(
    "error",
    [ConnectionError("Couldn't reach 'owner/name' on the Hub\nmore"), ValueError("BuilderConfig 'x' not found.")],
)
def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch, hub_answers, error):
    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    said = message("owner/name")
    assert said.startswith("cannot read 'owner/name' from the Hugging Face hub (")
    assert "no local path of that name exists: check the name" in said
