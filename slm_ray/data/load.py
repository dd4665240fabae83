"""From the name of a corpus to the corpus."""

from __future__ import annotations

import difflib
from pathlib import Path

from slm_ray.config.errors import UserError, nearest
from slm_ray.data.bundled import BUNDLED, bundled_corpus
from slm_ray.data.documents import Corpus
from slm_ray.data.hub import hub_corpus, is_hub_id
from slm_ray.data.local import is_supported, local_corpus
from slm_ray.records.files import explain_os_error
from slm_ray.runtime.progress import Console


def load_corpus(
    name: str, text_field: str = "text", console: Console | None = None, domain_field: str | None = None
) -> Corpus:
    """Find a corpus by name: bundled, else a local file or folder, else a dataset on the Hugging Face hub.

    The first document is read at once, so that a wrong name or field is found before anything is spent.

    Args:
        name: ``python-docs``, ``python-docs-full``, a path, ``owner/name`` or ``owner/name:config``.
        text_field: The field of records (JSON, CSV, Parquet, hub) that holds the text.
        console: Where to say that something takes long.
        domain_field: The field of local records that names the domain of each, where it is asked for.

    Raises:
        UserError: There is no such corpus, it is empty, or its first record has no text field.
    """
    if name in BUNDLED:
        if domain_field is not None:
            raise UserError(f"--domain-field {domain_field} is for records of files: {name} has no fields")
        return bundled_corpus(name, console)
    corpus = _other_corpus(name, text_field, domain_field)
    next(iter(corpus))
    return corpus


def _other_corpus(name: str, text_field: str, domain_field: str | None) -> Corpus:
    path = Path(name).expanduser()
    try:
        exists = bool(name) and path.exists()
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
    if exists:
        return local_corpus(name, path, text_field, domain_field)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or is_supported(path):
        raise _no_such_path(path)
    if is_hub_id(name):
        if domain_field is not None:
            raise UserError(
                f"--domain-field {domain_field} needs a corpus that can be gone through, and {name} is a stream: give "
                "its configurations one by one, as --data NAME=owner/name:config"
            )
        return hub_corpus(name, text_field)
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
