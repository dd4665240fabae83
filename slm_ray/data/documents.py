"""What a corpus is: documents that can be gone through any number of times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from slm_ray.config.errors import UserError


@dataclass(frozen=True)
class Document:
    """One document: a name to find it by, its text, and the domain that its record names where that was asked for."""

    id: str
    text: str
    domain: str | None = None


class Slice(Protocol):
    """Some consecutive documents of a corpus, for a process of its own to read; small enough to send there."""

    @property
    def num_bytes(self) -> int:
        """About how many bytes of text it has, markup included; 0 for a remote stream, where it cannot be known."""

    def documents(self) -> Iterable[Document]:
        """Starts a new pass over its documents."""


@dataclass(frozen=True)
class DocumentSlice:
    """Documents at hand."""

    items: Sequence[Document]

    @property
    def num_bytes(self) -> int:
        """Bytes of text, by the number of its characters."""
        return sum(len(document.text) for document in self.items)

    def documents(self) -> Iterable[Document]:
        """The documents."""
        return self.items


@dataclass(frozen=True)
class Corpus:
    """A named source of documents.

    Attributes:
        name: As the user gave it.
        read: Starts a new pass over the documents.
        text_field: The field of structured records that holds the text.
        compute_digest: Gives the digest of the content; None where it cannot be known without reading a remote stream.
        split: Gives slices of about so many bytes that are read in processes of their own; None where the documents are
            all in this process.
    """

    name: str
    read: Callable[[], Iterable[Document]] = field(repr=False, compare=False)
    text_field: str = "text"
    compute_digest: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    split: Callable[[int], Sequence[Slice]] | None = field(default=None, repr=False, compare=False)

    @property
    def is_finite(self) -> bool:
        """Whether the whole corpus is at hand (bundled or local), so that going through all of it is reasonable."""
        return self.compute_digest is not None

    @cached_property
    def digest(self) -> str | None:
        """The digest of the content (64 hexadecimal digits), or None for a remote stream."""
        return self.compute_digest() if self.compute_digest else None

    @property
    def identity(self) -> str:
        """What stands for the content in the name of a cache: the digest, or the remote name and field."""
        return self.digest or f"hub:{self.name}#{self.text_field}"

    def __iter__(self) -> Iterator[Document]:
        """Every document that has text, in the corpus's own order.

        Raises:
            UserError: There is none, or a record cannot be read.
        """
        found = False
        for document in with_text(self.read()):
            found = True
            yield document
        if not found:
            raise UserError(f"the corpus '{self.name}' has no text: give a corpus with at least one non-empty document")

    def slices(self, num_bytes: int) -> Sequence[Slice]:
        """The corpus as slices of about ``num_bytes``, in its own order; how it is cut depends on nothing else.

        Raises:
            UserError: A file cannot be looked at.
        """
        if self.split is not None:
            return self.split(num_bytes)
        slices: list[list[Document]] = [[]]
        filled = 0
        for document in self.read():
            if filled >= num_bytes:
                slices.append([])
                filled = 0
            slices[-1].append(document)
            filled += len(document.text)
        return [DocumentSlice(items) for items in slices]


def with_text(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents that have text, in a form that UTF-8 can say."""
    return (_encodable(document) for document in documents if document.text.strip())


def _encodable(document: Document) -> Document:
    """Replace lone surrogates, which JSON can say but UTF-8 cannot, by U+FFFD."""
    try:
        document.text.encode()
    except UnicodeEncodeError:
        text = document.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return Document(document.id, text, document.domain)
    return document


def digest_texts(texts: Iterable[str]) -> str:
    """The SHA-256 (64 hexadecimal digits) of the SHA-256 of each text, in the order given."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(hashlib.sha256(text.encode()).digest())
    return whole.hexdigest()
