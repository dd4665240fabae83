"""Numbers with units: reading what people type, writing what people read."""

from __future__ import annotations

import math
import re

from slm_ray.config.errors import UserError

_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_LARGEST_EXPONENT = 700.0
_NUMBER = re.compile(r"^([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]?)(%?)$")


def parse_number(text: str) -> float:
    """Read ``60M``, ``1.5G``, ``2e9``, ``0.5`` or ``50%``."""
    match = _NUMBER.match(text.strip().replace("_", ""))
    if not match or match.group(2).upper() not in _SUFFIXES or (match.group(2) and match.group(3)):
        raise UserError(f"'{text}' is not a number: write it like 0.5, 50%, 60M, 1.5G or 2e9")
    value = float(match.group(1)) * _SUFFIXES[match.group(2).upper()]
    return value / 100 if match.group(3) else value


def perplexity_of_loss(loss: float | None) -> float | None:
    """``exp`` of a loss in nats; None without one, and where no double holds it (from about 710 on)."""
    return math.exp(loss) if loss is not None and loss < _LARGEST_EXPONENT else None


def format_count(value: float) -> str:
    """Write a count with three significant figures and a suffix: ``134515008`` gives ``135M``."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    for suffix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if size >= 0.9995 * unit:
            return f"{sign}{_three_figures(size / unit)}{suffix}"
    return f"{sign}{_three_figures(size)}"


def _three_figures(value: float) -> str:
    if value >= 99.95 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def plural(count: float, noun: str, many: str | None = None) -> str:
    """A count with its noun: ``1 model``, ``2 models``, ``1,024 models``."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:,g}"
    return f"{number} {noun if count == 1 else many or noun + 's'}"


def format_bytes(num_bytes: float) -> str:
    """Write a number of bytes in binary units: ``538060032`` gives ``513 MiB``."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{_three_figures(size)} {unit}"
        size /= 1024
    return f"{_three_figures(size)} TiB"


def format_seconds(seconds: float) -> str:
    """Write a duration: ``4.2 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
