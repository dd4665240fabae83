"""Keys and tokens never reach a log, a record or a page."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_SECRET_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(API|ACCESS|ACCOUNT|STORAGE|PRIVATE|SIGNING)_?KEY|CONNECTION_STRING|_SAS$)",
    re.IGNORECASE,
)
# Of a field, where "tokens" and "tokenizer" are no secrets.
_SECRET_FIELD = re.compile(r"((^|[_.-])token$|api_?key|secret|passw(or)?d|credential)", re.IGNORECASE)
_SECRET_SHAPE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|A[KS]IA[0-9A-Z]{16}|wandb_v1_[A-Za-z0-9_]{16,}"
    r"|gh[opsu]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,})"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
# Of an address's options: keys of pyarrow's and of signed links.
_URL_OPTION = re.compile(
    r"(?<=[?&])((?:[\w.-]*(?:secret|password|signature|credential|token(?!s|iz)|(?:access|api|account)_?key)[\w.-]*|sig)=)"
    r"[^&\s\"']+",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8
MASK = "[redacted]"


def redact(text: str) -> str:
    """Mask the values of secret-looking environment variables, known key shapes, logins and keys inside addresses."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name) and value in text:
            text = text.replace(value, MASK)
    return _URL_OPTION.sub(rf"\1{MASK}", _URL_LOGIN.sub(MASK, _SECRET_SHAPE.sub(MASK, text)))


def secret_in(text: str) -> bool:
    """Whether an option's value has a login or a key in it by its shape, whatever the environment is."""
    return any(shape.search(text) for shape in (_URL_LOGIN, _SECRET_SHAPE, _URL_OPTION))


def redact_value(value: Any) -> Any:
    """The same for everything inside a JSON-like value; texts in fields that are called secrets are masked whole."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(inner, str) and inner and _SECRET_FIELD.search(str(key)) else redact_value(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact_value(inner) for inner in value]
    return value
