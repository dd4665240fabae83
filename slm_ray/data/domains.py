"""A corpus taken apart by the domain that each of its records names."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from slm_ray.config.digest import canonical_json, sha256_bytes
from slm_ray.config.errors import UserError
from slm_ray.data.documents import Corpus, Document

MOST_DOMAINS = 64


def _of_domain(corpus: Corpus, domain: str) -> Iterable[Document]:
    return (document for document in corpus.read() if document.domain == domain)


def split_domains(corpus: Corpus, domain_field: str) -> dict[str, Corpus]:
    """A corpus per value of a field, in the order in which the values first occur.

    Args:
        corpus: One that was loaded with this ``domain_field``.
        domain_field: For the digests and for errors.

    Raises:
        UserError: There are more than ``MOST_DOMAINS`` values: the field is an id rather than a domain.
    """
    names: dict[str, None] = {}
    for document in corpus:
        if document.domain is not None:
            names[document.domain] = None
        if len(names) > MOST_DOMAINS:
            raise UserError(
                f"--domain-field {domain_field} has more than {MOST_DOMAINS} values in {corpus.name}: give a field "
                "with one value per domain"
            )
    return {
        name: Corpus(
            f"{corpus.name}#{name}", partial(_of_domain, corpus, name), corpus.text_field,
            lambda name=name: sha256_bytes(  # type: ignore[misc]
                canonical_json([corpus.digest, domain_field, name]).encode()
            ),
        )
        for name in names
    }  # fmt: skip
