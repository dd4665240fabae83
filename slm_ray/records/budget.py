"""A budget: a quantity, its unit, and the range it must lie in."""

from __future__ import annotations

from dataclasses import dataclass, field

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.units import format_count, parse_number
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token, kv_bytes_per_token, num_params

QUANTITIES = {"params": "parameters", "flops": "FLOPs/token", "kv_bytes": "KV-cache bytes/token"}
DEFAULT_FLOOR_SHARE = 0.75


def measure_cost(architecture: Architecture, quantity: str, sequence_length: int) -> int:
    """The cost of an architecture in one of the budget quantities.

    ``quantity``: ``params``, ``flops`` (per token) or ``kv_bytes`` (per token, two bytes a value). ``sequence_length``:
    The context at which FLOPs and cache are counted.
    """
    if quantity == "params":
        return num_params(architecture)
    if quantity == "flops":
        return flops_per_token(architecture, sequence_length)
    if quantity == "kv_bytes":
        return kv_bytes_per_token(architecture, sequence_length=sequence_length)
    raise unknown_name("budget quantity", quantity, QUANTITIES)


@dataclass(frozen=True)
class Budget:
    """A hard range of one quantity: every candidate's cost lies in ``low..high``, both ends included."""

    quantity: str  # Which
    low: int  # Its least
    high: int  # Its most
    # Only the most was asked for; the least merely keeps a search from models far smaller
    is_ceiling: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise unknown_name("budget quantity", self.quantity, QUANTITIES)
        if not 0 <= self.low <= self.high:
            raise UserError(f"a budget's range must have 0 <= low <= high, got low={self.low}, high={self.high}")

    def holds(self, cost: int) -> bool:
        """Whether a cost lies in the range."""
        return self.low <= cost <= self.high

    def __str__(self) -> str:
        return f"{format_count(self.low)}..{format_count(self.high)} {QUANTITIES[self.quantity]}"


_FEWEST = {"params": 1000, "flops": 1000}
"""A smaller count can only be a share that was written without its point."""


def _read_end(quantity: str, text: str) -> tuple[float, bool]:
    """The number at one end of a budget, and whether it is a share of the teacher's cost."""
    flag = f"--{quantity.replace('_', '-')}"
    try:
        value = parse_number(text)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from error
    suffixed = text[-1:].isalpha()
    if "%" in text or (value <= 1 and not suffixed):
        if value > 1:
            raise UserError(f"{flag} {text} is a share above 100%: give at most 100%, or a count like 60M")
        return value, True
    if "." in text and not suffixed and "e" not in text.lower():
        raise UserError(f"{flag} {text} is a share above 1: give at most 1, or a count like 60M")
    if value < _FEWEST.get(quantity, 0):
        raise UserError(
            f"{flag} {text} is a count of {value:g} {QUANTITIES[quantity]}, which no model is made of: give a share "
            "like 0.5 or 50%, or a count like 60M"
        )
    return value, False


def read_budget(quantity: str, text: str) -> tuple[tuple[float, bool] | None, tuple[float, bool]]:
    """The ends of a budget as written: the lower one, if given, and the upper one. Needs no teacher.

    Each is a number and whether it is a share.
    """
    flag = f"--{quantity.replace('_', '-')}"
    ends = [end.strip() for end in text.split("..")]
    if len(ends) > 2 or not all(ends):
        raise UserError(f"{flag} '{text}' is no budget: write a ceiling like 0.5 or 60M, or a range like 60M..70M")
    high = _read_end(quantity, ends[-1])
    low = _read_end(quantity, ends[0]) if len(ends) == 2 else None
    if high[0] <= 0 or (low is not None and low[1] == high[1] and low[0] > high[0]):
        raise UserError(f"{flag} '{text}' is an empty range: it needs 0 <= low <= high and high > 0")
    return low, high


def parse_budget(quantity: str, text: str, teacher: Architecture, sequence_length: int) -> Budget:
    """Read a budget such as ``0.5``, ``50%``, ``60M``, ``60M..70M`` or ``0.4..0.7``.

    Shares are of the teacher's own cost. A single value is a ceiling; the floor is then three quarters of it, so that
    the search is not spent on far smaller models (``0..60M`` has no floor).
    """
    whole, flag = measure_cost(teacher, quantity, sequence_length), f"--{quantity.replace('_', '-')}"

    def resolve(end: tuple[float, bool]) -> int:
        value = end[0] * whole if end[1] else end[0]
        if value > whole:
            raise UserError(
                f"{flag} {text} is more than the teacher's {format_count(whole)}: give a share up to 1 or a smaller "
                "count"
            )
        return int(value)

    lower, upper = read_budget(quantity, text)
    high = resolve(upper)
    low = resolve(lower) if lower is not None else int(high * DEFAULT_FLOOR_SHARE)
    if high <= 0 or low > high:
        raise UserError(f"{flag} '{text}' is an empty range: it needs 0 <= low <= high and high > 0")
    return Budget(quantity, low, high, is_ceiling=lower is None)
