"""The text, and the domain, of one record of a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from slm_ray.config.errors import UserError, nearest
from slm_ray.data.corpus import Document


class Fields:
    """Takes texts out of the records of one file or stream, and remembers whether a record had the field."""

    def __init__(self, text_field: str, domain_field: str | None = None) -> None:
        self.text_field, self.domain_field = text_field, domain_field
        self._found = False

    def document(self, record: Any, where: str, id: str) -> Document:
        """The document of one record: the record itself if it is a string, else its text field (null is empty)."""
        text = self._text(record, where)
        return Document(id, text, self._domain(record, where) if text else None)

    def columns(self, names: Sequence[str], source: str) -> list[str]:
        """The columns of a table that are read."""
        wanted = [self.text_field]
        if self.domain_field is not None:
            wanted.append(self.domain_field.split(".")[0])
        for name, flag in zip(wanted, ("--text-field", "--domain-field"), strict=False):
            if name not in names:
                raise _missing(source, name, names, flag)
        return list(dict.fromkeys(wanted))

    def _text(self, record: Any, where: str) -> str:
        value = record
        if isinstance(record, dict):
            if self.text_field not in record:
                if self._found:  # the field is right, and this record is wrong
                    raise UserError(
                        f"{where} has no field '{self.text_field}', which those before it have: mend or remove it"
                    )
                raise _missing(where, self.text_field, record, "--text-field")
            value = record[self.text_field]
        elif not isinstance(record, str):
            raise UserError(
                f"{where} must be an object with a field '{self.text_field}' or a string, got {type(record).__name__}"
            )
        if value is not None and not isinstance(value, str):
            fix = "mend or remove it" if self._found else "choose another with --text-field"
            raise UserError(f"{where}: field '{self.text_field}' must hold text, got {type(value).__name__}: {fix}")
        self._found = self._found or bool(value)
        return value or ""

    def _domain(self, record: Any, where: str) -> str | None:
        if self.domain_field is None:
            return None
        value = record
        for name in self.domain_field.split("."):
            if not isinstance(value, dict) or name not in value:
                raise _missing(where, self.domain_field, value if isinstance(value, dict) else [], "--domain-field")
            value = value[name]
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            kind = type(value).__name__
            raise UserError(f"{where}: field '{self.domain_field}' must hold text or a whole number, got {kind}")
        return str(value)


def _missing(where: str, field: str, names: Iterable[Any], flag: str) -> UserError:
    near = nearest(field.split(".")[-1], [str(name) for name in names])
    return UserError(f"{where} has no field '{field}': {near}; choose one with {flag}")
