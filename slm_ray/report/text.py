"""How figures are written in every table, picture, page and card."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slm_ray.config.units import format_bytes, format_count
from slm_ray.records.search import ModelShape

MISSING = "–"
WITHIN = "within the noise"
NORMAL_95 = 1.96
_PLAIN_LIMIT, _MOST_LOSS = 1e7, 300.0


def perplexity_text(value: float | None, stderr: float | None = None) -> str:
    """A perplexity with three figures or all its digits: ``33.2 ± 0.9``, ``90,123``; a dash where there is none."""
    if value is None:
        return MISSING
    text = _number_text(value)
    return text if stderr is None else f"{text} ± {_stderr_text(stderr, value)}"


def _number_text(value: float) -> str:
    if value >= _PLAIN_LIMIT:
        return f"{value:.2g}"
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _stderr_text(stderr: float, value: float) -> str:
    if value >= _PLAIN_LIMIT:
        return f"{stderr:.1g}"
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    # As many decimals as the value has, unless that would say "0.0".
    return f"{stderr:,.{digits}f}" if round(stderr, digits) > 0 else f"{stderr:.1g}"


def perplexity_of(loss: float | None, stderr: float | None = None) -> str:
    """A loss as a perplexity; its standard error is carried over (delta method)."""
    if loss is None or loss > _MOST_LOSS:
        return MISSING
    value = math.exp(loss)
    return perplexity_text(value, None if stderr is None else value * stderr)


def interval_text(value: float | None, stderr: float | None) -> str:
    """The 95% interval of a normal distribution around a perplexity, or a dash."""
    if value is None or stderr is None:
        return MISSING
    low, high = max(value - NORMAL_95 * stderr, 0.0), value + NORMAL_95 * stderr
    return f"{_number_text(low)} to {_number_text(high)}"


def range_text(interval: tuple[float, float] | None, digits: int = 4) -> str:
    """The two ends of an interval with so many decimals, or a dash."""
    return MISSING if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def fixed(value: float | None, digits: int = 4) -> str:
    """A value with so many decimals, or a dash."""
    return MISSING if value is None else f"{value:.{digits}f}"


def ratio_text(value: float | None, of: float | None) -> str:
    """A ratio: ``1.72×``, ``4,670×``."""
    if value is None or not of:
        return MISSING
    ratio = value / of
    return f"{ratio:,.0f}×" if ratio >= 99.5 else (f"{ratio:.1f}×" if ratio >= 9.95 else f"{ratio:.2f}×")


def times_text(value: float | None) -> str:
    """A ratio of costs: ``12× fewer``, ``1.3× more``, ``as many``; empty without one."""
    if value is None:
        return ""
    if abs(value - 1) < 0.005:
        return "as many"
    return f"{value:.3g}× fewer" if value >= 1 else f"{1 / value:.3g}× more"


def share_text(value: float | None, of: float | None) -> str:
    """A share in per cent: ``70.0%``."""
    return MISSING if value is None or not of else f"{100 * value / of:.1f}%"


def count_text(value: float | None) -> str:
    """A count with a suffix, or a dash."""
    return MISSING if value is None else format_count(value)


def bytes_text(value: float | None) -> str:
    """Bytes with a binary unit, or a dash."""
    return MISSING if value is None else format_bytes(value)


def flops_text(value: float) -> str:
    """A number of FLOPs with three significant figures: ``2.1e15`` gives ``2.1P``."""
    for suffix, unit in (("E", 1e18), ("P", 1e15)):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g}{suffix}"
    return format_count(value)


def energy_text(joules: float | None) -> str:
    """Energy in kWh, or ``not known``."""
    return "not known" if joules is None else f"{joules / 3.6e6:.3g} kWh"


def sizes_text(values: Sequence[int]) -> str:
    """The least and the largest of some sizes: ``2–9``, or ``9`` where all are the same."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def shape_text(shape: ModelShape, teacher: ModelShape | None = None) -> str:
    """A shape in one phrase: ``24 of 30 layers · width 576 · 2–9 heads · 512–1536 neurons · 24,576 tokens``."""
    if not shape.num_layers:
        return MISSING
    of = f" of {teacher.num_layers}" if teacher else ""
    heads, neurons = sizes_text(shape.num_attention_heads), sizes_text(shape.intermediate_size)
    return (
        f"{shape.num_layers}{of} layers · width {shape.hidden_size} · {heads} heads · {neurons} neurons · "
        f"{shape.vocab_size:,} tokens"
    )


def differs(a: float, a_stderr: float | None, b: float, b_stderr: float | None) -> bool | None:
    """Whether two perplexities are further apart than their joint 95% interval; None where that is not known.

    They are compared as losses (logarithms), whose errors are nearly normal: a ruined model's perplexity of 1e7 ± 1e7
    is no less clearly worse than 20. Errors are taken as independent, which is the cautious side on one text.
    """
    if a_stderr is None or b_stderr is None or min(a, b) <= 0:
        return None
    return abs(math.log(a / b)) > NORMAL_95 * math.hypot(a_stderr / a, b_stderr / b)


def public_name(name: object) -> str:
    """A name for cards, which leave this machine: of a path its last part."""
    text = str(name)
    return Path(text).name or text if text.startswith(("/", "~", ".")) else text


def load_code(path: str, remote_code: bool) -> str:
    """Python that loads a saved model and lets it write a little."""
    where = json.dumps(path, ensure_ascii=False)
    remote = ", trust_remote_code=True" if remote_code else ""
    return "\n".join([
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({where}{remote})",
        f"tokenizer = AutoTokenizer.from_pretrained({where}{remote})",
        'inputs = tokenizer("Python is a", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=30)[0]))",
    ])  # fmt: skip


def needs_remote_code(folder: Path) -> bool | None:
    """Whether a saved model says that it needs ``trust_remote_code=True``; None where there is none to ask."""
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return isinstance(saved, dict) and "auto_map" in saved


def script_json(value: Any) -> str:
    """JSON that cannot end the script tag it stands in, whatever names are in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
