"""The corpora every Python installation carries: its manual and its modules' docstrings. No network needed."""

from __future__ import annotations

import ast
import contextlib
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus, Document, digest_texts
from slm_ray.records.files import cache_folder, read_json, write_json
from slm_ray.runtime.progress import Console

PYTHON_DOCS, PYTHON_DOCS_FULL = "python-docs", "python-docs-full"
BUNDLED = (PYTHON_DOCS, PYTHON_DOCS_FULL)

_FORMAT = 1  # raise it when what is extracted changes, so that older caches are left alone
_MANY_FILES = 2000  # from here on it takes long enough to say so
# Test packages document tests; the pages of `encodings` are one sentence repeated a hundred times.
_SKIPPED_FOLDERS = {
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "encodings",
}  # fmt: skip


def _walk(root: Path) -> Iterator[os.DirEntry[str]]:
    """The Python files below a folder, sorted, as directory entries (their size and time come almost free)."""
    try:
        with os.scandir(root) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED_FOLDERS:
                yield from _walk(Path(entry.path))
        elif entry.name.endswith(".py"):
            yield entry


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module and of everything defined in it, in the order of the source."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _docstrings(child)


def module_text(source: bytes) -> str:
    """All docstrings of a module's source, joined by blank lines; empty if it has none or is not Python 3."""
    if b'"""' not in source and b"'''" not in source:
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "\n\n".join(_docstrings(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):
        return ""


def _topics() -> Iterator[Document]:
    """The pages of the language reference that ``help()`` shows."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave them out
        return
    for name in sorted(topics):
        yield Document(f"topics/{name}", topics[name])


def _roots(name: str) -> dict[str, Path]:
    paths = sysconfig.get_paths()
    roots = {"stdlib": Path(paths["stdlib"])}
    if name == PYTHON_DOCS_FULL:
        roots["site-packages"] = Path(paths["purelib"])
        if paths["platlib"] != paths["purelib"]:
            roots["site-packages-platform"] = Path(paths["platlib"])
    return roots


def _extract(files: Iterable[tuple[str, str]]) -> Iterator[Document]:
    yield from _topics()
    for id, path in files:
        try:
            text = module_text(Path(path).read_bytes())
        except OSError:
            continue
        if text:
            yield Document(id, text)


def _read_cache(path: Path) -> list[Document] | None:
    """The documents in a cache file, or None if it is missing, damaged, or of another shape."""
    try:
        stored: Any = read_json(path)
        documents = [Document(str(id), str(text)) for id, text in stored["documents"]]
        return documents if digest_texts(document.text for document in documents) == stored["digest"] else None
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _documents(name: str, console: Console) -> list[Document]:
    """The documents of a bundled corpus, from the cache if no file of the installation has changed since."""
    listing, files = [], []
    for label, root in _roots(name).items():
        for entry in _walk(root):
            id, status = f"{label}/{Path(entry.path).relative_to(root).as_posix()}", entry.stat()
            listing.append([id, status.st_size, status.st_mtime_ns])
            files.append((id, entry.path))
    key = digest_json({"format": _FORMAT, "python": sys.version, "files": listing})
    cache = cache_folder() / "corpora" / f"{name}-{key}.json"
    if (documents := _read_cache(cache)) is not None:
        return documents
    if len(files) >= _MANY_FILES:
        console.line(f"{name}: reading the docstrings of {len(files):,} files, once; later runs find them in {cache}")
    documents = list(_extract(files))
    with contextlib.suppress(UserError):  # a cache that cannot be written costs two seconds, not the run
        digest = digest_texts(document.text for document in documents)
        write_json(cache, {"digest": digest, "documents": [[document.id, document.text] for document in documents]})
    return documents


def bundled_corpus(name: str, console: Console | None = None) -> Corpus:
    """A corpus that needs no download.

    ``python-docs`` holds a document per topic of the language reference and one per module of the standard library (its
    docstrings); ``python-docs-full`` adds one per module of the installed packages. No module is imported for it. What
    they hold depends on the Python (and the packages) installed; the digest tells.
    """
    documents = _documents(name, console or Console())
    if not documents:
        raise UserError(f"this Python carries no sources, so '{name}' is empty: give a local file or folder as corpus")
    return Corpus(name, lambda: documents, compute_digest=lambda: digest_texts(document.text for document in documents))
