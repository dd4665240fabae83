"""From the name of a corpus to the corpus: bundled, a local file or folder, or a dataset on the Hugging Face hub."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, nearest
from slm_ray.data.blend import parse_blend
from slm_ray.data.bundled import BUNDLED, bundled_corpus
from slm_ray.data.corpus import Corpus, Document, blend_corpora
from slm_ray.data.fields import Fields
from slm_ray.data.files import is_supported, local_corpus
from slm_ray.records.files import explain_os_error
from slm_ray.runtime.progress import Console

BY_TEACHER = "teacher"  # the name of what the teacher writes itself
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.+-]+)?", re.ASCII)
_HUB_SECONDS = 10.0  # for the hub's first answer


def load_corpus(
    name: str, text_field: str = "text", console: Console | None = None, domain_field: str | None = None,
    by_teacher: Callable[[], Corpus] | None = None,
) -> Corpus:  # fmt: skip
    """Find a corpus by name: bundled, else a local file or folder, else a dataset on the Hugging Face hub; or a blend.

    ``by_teacher`` gives what the teacher writes itself, which is called ``teacher``; None where there is no teacher.
    The first document is read at once, so that a wrong name or field is found before anything is spent.
    """
    if blend := parse_blend(name):
        if domain_field is not None:
            raise UserError(f"--domain-field {domain_field} is for one corpus: give those of '{name}' one by one")
        parts = ((share, load_corpus(one, text_field, console, None, by_teacher)) for one, share in blend.items())
        return blend_corpora(name, tuple(parts))
    if name == BY_TEACHER and not Path(name).exists():
        if by_teacher is None:
            raise UserError(f"the corpus '{name}' is what a teacher writes itself, and none is here: name another")
        return by_teacher()
    if name in BUNDLED:
        if domain_field is not None:
            raise UserError(f"--domain-field {domain_field} is for records of files: {name} has no fields")
        return bundled_corpus(name, console)
    corpus = _other_corpus(name, text_field, domain_field)
    next(iter(corpus))
    return corpus


def is_on_hub(name: str) -> bool:
    """Whether a name is taken for a hub dataset's, ``owner/name`` or ``owner/name:config``, and not for a path."""
    path = Path(name).expanduser()
    is_path = name.startswith((".", "/", "~")) or is_supported(path) or path.exists() or path.parent.is_dir()
    return bool(_HUB_ID.fullmatch(name)) and not is_path


def _other_corpus(name: str, text_field: str, domain_field: str | None) -> Corpus:
    path = Path(name).expanduser()
    try:
        exists = bool(name) and path.exists()
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
    if exists:
        return local_corpus(name, path, text_field, domain_field)
    if is_on_hub(name):
        if domain_field is not None:
            raise UserError(
                f"--domain-field {domain_field} needs a corpus that can be gone through, and {name} is a stream: give "
                "its configurations one by one, as --data NAME=owner/name:config"
            )
        _check_hub(name)
        return hub_corpus(name, text_field)
    if "/" in name or name.startswith((".", "~")) or is_supported(path):
        raise _no_such_path(path)
    raise UserError(
        f"unknown corpus '{name}': {nearest(name, BUNDLED)}; or give a local file or folder, or a hub dataset "
        "as owner/name"
    )


def _no_such_path(path: Path) -> UserError:
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir() or is_supported(entry)]
    except OSError:
        return UserError(f"{path} does not exist: check the path (the folder {path.parent} does not exist either)")
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return UserError(
        f"{path} does not exist: " + (f"did you mean '{path.with_name(close[0])}'?" if close else "check the path")
    )


def hub_corpus(name: str, text_field: str) -> Corpus:
    """The ``train`` split of a dataset on the hub, read as a stream; code in the dataset's repository is never run."""
    return Corpus(name, partial(_hub_documents, name, text_field), text_field)


def _hub_documents(name: str, text_field: str) -> Iterator[Document]:
    fields = Fields(text_field)
    for number, record in enumerate(_hub_records(name), start=1):
        yield fields.document(record, f"record {number} of '{name}'", f"{name}:{number}")


def _check_hub(name: str) -> None:
    """Ask the hub once whether it has a dataset: ``datasets`` tries for half a minute where there is no network."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(name.partition(":")[0], timeout=_HUB_SECONDS)
    except Exception as error:  # of the HTTP library, the hub's own, or that it must not be asked
        raise _cannot_read(name, error) from error


def _hub_records(name: str) -> Iterator[Any]:
    dataset_id, _, config = name.partition(":")
    # What `datasets` raises depends on its version and on the HTTP library below it, so any failure of it counts.
    try:
        import datasets

        yield from datasets.load_dataset(dataset_id, config or None, split="train", streaming=True)
    except Exception as error:
        raise _cannot_read(name, error) from error


def _cannot_read(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    return UserError(
        f"cannot read '{name}' from the Hugging Face hub ({reason.rstrip('.')}), and no local path of that name "
        "exists: check the name (owner/name or owner/name:config) and the network, or give a local file or folder, or "
        "python-docs"
    )
