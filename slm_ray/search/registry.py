"""The proxies and the algorithms there are, by name, without what they need to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.records.budget import QUANTITIES

AlgorithmName = Literal["nsga2", "ga", "random", "importance"]
ALGORITHMS: tuple[str, ...] = get_args(AlgorithmName)
SCREENED = ("nsga2", "ga")  # those that make offspring, and so can make more of them than are measured


@dataclass(frozen=True)
class ProxyInfo:
    """What is known of a proxy without running it."""

    name: str  # Its name on the command line and in records
    unit: str  # What its value is counted in
    minimise: bool  # Whether less is better
    staged: bool = False  # It is a mean loss over tokens, measured in stages and raced
    scores: str | None = None  # The unit scores it needs, if any


PROXIES: dict[str, ProxyInfo] = {
    info.name: info
    for info in (
        ProxyInfo("perplexity", "perplexity", True, staged=True),
        ProxyInfo("kl", "nats/token", True, staged=True),
        ProxyInfo("importance", "expected loss rise, nats/token", True, scores="taylor"),
        ProxyInfo("magnitude", "share of the teacher's weight norm", False, scores="magnitude"),
        ProxyInfo("block_influence", "sum of 1 - cosine over kept layers", False, scores="activation"),
        ProxyInfo("latency", "seconds/token", True),
    )
}


def parse_objectives(text: str) -> tuple[str, ...]:
    """Read ``perplexity,params`` into one or two objectives: a proxy, and a cost or latency."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in PROXIES and name not in QUANTITIES:
            raise unknown_name("objective", name, [*PROXIES, *QUANTITIES])
    if not 1 <= len(names) <= 2 or len(set(names)) != len(names):
        raise UserError(f"--objectives '{text}' must name one proxy, or a proxy and a cost, e.g. perplexity,params")
    if names[0] not in PROXIES or names[0] == "latency":
        raise UserError(f"--objectives '{text}': the first must be a quality proxy, e.g. perplexity,params")
    if len(names) == 2 and names[1] in PROXIES and names[1] != "latency":
        raise UserError(f"--objectives '{text}': the second must be a cost: params, flops, kv_bytes or latency")
    return names
