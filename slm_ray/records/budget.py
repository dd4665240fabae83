"""A budget: a quantity, its unit, and the range it must lie in."""

from __future__ import annotations

from dataclasses import dataclass, field

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.units import format_count, parse_number
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token, kv_bytes_per_token, num_params

QUANTITIES = {"params": "parameters", "flops": "FLOPs/token", "kv_bytes": "KV-cache bytes/token"}
DEFAULT_FLOOR_SHARE = 0.75
_LEAST_COUNT = 1000  # no budget of anything is smaller; such a number is a share above 1 or a slip


def measure_cost(architecture: Architecture, quantity: str, sequence_length: int) -> int:
    """The cost of an architecture in one of the budget quantities.

    Args:
        architecture: The sizes.
        quantity: ``params``, ``flops`` (per token) or ``kv_bytes`` (per token, two bytes a value).
        sequence_length: The context at which FLOPs are counted.
    """
    if quantity == "params":
        return num_params(architecture)
    if quantity == "flops":
        return flops_per_token(architecture, sequence_length)
    if quantity == "kv_bytes":
        return kv_bytes_per_token(architecture)
    raise unknown_name("budget quantity", quantity, QUANTITIES)


@dataclass(frozen=True)
class Budget:
    """A hard range of one quantity: every candidate's cost lies in ``low..high``, both ends included.

    Attributes:
        quantity: Which.
        low: Its least.
        high: Its most.
        is_ceiling: Only the most was asked for; the least merely keeps a search from models far smaller.
    """

    quantity: str
    low: int
    high: int
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


def _resolve_end(text: str, whole: int, flag: str, unit: str) -> int:
    """One end of a range: a share up to 1 of the teacher's own cost, or a count."""
    value = parse_number(text)
    is_share = "%" in text or value in (0, 1) or (value < 1 and "." in text)
    if not is_share and value < _LEAST_COUNT <= whole:
        raise UserError(
            f"{flag} {text} is neither a share of the teacher's {format_count(whole)} {unit} nor a likely count: "
            "give a share from 0 to 1 (0.5, 50%) or a count like 60M"
        )
    if is_share:
        value *= whole
    if value > whole:
        raise UserError(
            f"{flag} {text} is more than the teacher's {format_count(whole)}: give a share up to 1 or a smaller count"
        )
    return int(value)


def parse_budget(quantity: str, text: str, teacher: Architecture, sequence_length: int) -> Budget:
    """Read a budget such as ``0.5``, ``50%``, ``60M``, ``60M..70M`` or ``0.4..0.7``.

    Shares are of the teacher's own cost. A single value is a ceiling; the floor is then three quarters of it, so that
    the search is not spent on models far smaller than asked for (``0..60M`` has no floor).

    Raises:
        UserError: It is not such a text, the range is empty, or it is more than the teacher has.
    """
    whole = measure_cost(teacher, quantity, sequence_length)
    flag = f"--{quantity.replace('_', '-')}"
    ends = text.split("..")
    if len(ends) > 2 or not all(end.strip() for end in ends):
        raise UserError(f"{flag} '{text}' is no budget: write a ceiling like 0.5 or 60M, or a range like 60M..70M")
    unit = QUANTITIES[quantity]
    high = _resolve_end(ends[-1].strip(), whole, flag, unit)
    low = _resolve_end(ends[0].strip(), whole, flag, unit) if len(ends) == 2 else int(high * DEFAULT_FLOOR_SHARE)
    if high <= 0 or low > high:
        raise UserError(f"{flag} '{text}' is an empty range: it needs 0 <= low <= high and high > 0")
    return Budget(quantity, low, high, is_ceiling=len(ends) == 1)
