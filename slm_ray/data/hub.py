"""Corpora streamed from the Hugging Face hub, through ``datasets``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.data.documents import Corpus, Document
from slm_ray.data.record_files import record_text

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.+-]+)?", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``owner/name`` or ``owner/name:config``."""
    return bool(_HUB_ID.fullmatch(name))


def _cannot_read(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    return UserError(
        f"cannot read '{name}' from the Hugging Face hub ({reason.rstrip('.')}), and no local path of that name "
        "exists: check the name (owner/name or owner/name:config) and the network, or give a local file or folder, or "
        "python-docs"
    )


def _records(name: str) -> Iterator[Any]:
    dataset_id, _, config = name.partition(":")
    # What `datasets` raises depends on its version and on the HTTP library below it, so any failure of it counts.
    try:
        import datasets

        yield from datasets.load_dataset(dataset_id, config or None, split="train", streaming=True)
    except Exception as error:
        raise _cannot_read(name, error) from error


@dataclass(frozen=True)
class _HubStream:
    """A dataset on the hub from its first record on."""

    name: str
    text_field: str
    num_bytes: int = 0  # not known

    def documents(self) -> Iterator[Document]:
        for number, record in enumerate(_records(self.name), start=1):
            where = f"record {number} of '{self.name}'"
            yield Document(f"{self.name}:{number}", record_text(record, where, self.text_field))


def hub_corpus(name: str, text_field: str) -> Corpus:
    """The ``train`` split of a dataset on the hub, read as a stream; code in the dataset's repository is never run.

    Args:
        name: ``owner/name`` or ``owner/name:config``.
        text_field: The column that holds the text.
    """
    stream = _HubStream(name, text_field)
    return Corpus(name, stream.documents, text_field, split=lambda num_bytes: [stream])
