"""An argument parser whose mistakes are one sentence."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from slm_ray.config.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one sentence, with the nearest flag offered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UserError(f"{message} (see --help)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and name the nearest flag for one that does not exist."""
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            actions = list(self._actions)
            for commands in (action.choices for action in self._actions if isinstance(action.choices, dict)):
                actions += [action for parser in commands.values() for action in parser._actions]
            flags = [name for action in actions for name in action.option_strings if name.startswith("--")]
            flag = extra[0].split("=")[0]
            raise UserError(f"unknown argument '{flag}': {nearest(flag, flags)}")
        return parsed
