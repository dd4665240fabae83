"""What a user did wrong, said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from slm_ray.config.redact import redact


class UserError(ValueError):
    """A mistake the user can fix. Commands print it as one line and exit with status 2.

    The message names the rule, the value that broke it and the fix. Keys and logins in it are masked, because it ends
    in records as well as on the screen.

    Attributes:
        is_resumable: Once it is fixed, the run can be continued (a full disk); others fail the same way again
    """

    def __init__(self, message: str, *, is_resumable: bool = False) -> None:
        super().__init__(redact(message))
        self.is_resumable = is_resumable


class ConfigError(UserError):
    """Several mistakes found at once, each with the dotted path of the field it is in."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{source}: {count} mistake{'s' if count != 1 else ''}"
        super().__init__("\n".join([head + ":", *(f"  - {p}" for p in self.problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, list[str]]]:
        """Pickle it by its parts."""
        return ConfigError, (self.source, self.problems)


def first_line(error: BaseException, limit: int = 200) -> str:
    """What a library's exception says, in one line: its first one, or the name of its type; keys in it are masked."""
    lines = redact(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:limit]


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which valid names there are, the nearest one first."""
    names = sorted(choices)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    valid = f"valid: {', '.join(names)}"
    return f"did you mean '{close[0]}'? ({valid})" if close else valid


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is none of the choices, with the nearest one offered."""
    return UserError(f"unknown {kind} '{name}': {nearest(name, choices)}")
