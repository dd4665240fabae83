"""What a corpus is: documents that can be gone through any number of times."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

from slm_ray.config.digest import canonical_json, sha256_bytes
from slm_ray.config.errors import UserError

MOST_DOMAINS = 64


@dataclass(frozen=True)
class Document:
    """One document: a name to find it by, its text, and the domain that its record names where one is read."""

    id: str
    text: str
    domain: str | None = None


@dataclass(frozen=True)
class Corpus:
    """A named source of documents."""

    name: str  # As the user gave it
    read: Callable[[], Iterable[Document]] = field(repr=False, compare=False)  # Starts a new pass over the documents
    text_field: str = "text"  # The field of structured records that holds the text
    # Gives the digest of the content; None where it cannot be known without reading a remote stream
    compute_digest: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    # Gives about how many bytes of text there are, without reading them; by default the text is counted
    size: Callable[[], int] | None = field(default=None, repr=False, compare=False)
    # The corpora of a blend, with their shares of its tokens, which sum to 1; none where it is one corpus
    shares: tuple[tuple[float, Corpus], ...] = ()

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
        if self.shares:
            return canonical_json([[share, one.identity] for share, one in self.shares])
        return self.digest or f"hub:{self.name}#{self.text_field}"

    @property
    def num_bytes(self) -> int:
        """About how many bytes of text it has, markup included."""
        return self.size() if self.size is not None else sum(len(document.text) for document in self.read())

    def __iter__(self) -> Iterator[Document]:
        """Every document that has text, in the corpus's own order."""
        found = False
        for document in with_text(self.read()):
            found = True
            yield document
        if not found:
            raise UserError(f"the corpus '{self.name}' has no text: give a corpus with at least one non-empty document")


def blend_corpora(name: str, shares: tuple[tuple[float, Corpus], ...]) -> Corpus:
    """Several corpora as one, whose documents are all of theirs; ``shares`` of its tokens sum to 1."""

    def digest() -> str:
        return sha256_bytes(canonical_json([[share, one.digest] for share, one in shares]).encode())

    corpora = [one for _, one in shares]
    compute_digest = digest if all(one.is_finite for one in corpora) else None
    return Corpus(
        name, lambda: itertools.chain.from_iterable(one.read() for one in corpora), corpora[0].text_field,
        compute_digest, lambda: sum(one.num_bytes for one in corpora), shares,
    )  # fmt: skip


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


def split_domains(corpus: Corpus, domain_field: str) -> dict[str, Corpus]:
    """A corpus per value of a field, in the order in which the values first occur."""
    names: dict[str, None] = {}
    for document in corpus:
        if document.domain is not None:
            names[document.domain] = None
        if len(names) > MOST_DOMAINS:
            raise UserError(
                f"--domain-field {domain_field} has more than {MOST_DOMAINS} values in {corpus.name}: give a field "
                "with one value per domain"
            )

    def read(name: str) -> Iterable[Document]:
        return (document for document in corpus.read() if document.domain == name)

    def digest(name: str) -> str:
        return sha256_bytes(canonical_json([corpus.digest, domain_field, name]).encode())

    return {
        name: Corpus(f"{corpus.name}#{name}", partial(read, name), corpus.text_field, partial(digest, name))
        for name in names
    }
