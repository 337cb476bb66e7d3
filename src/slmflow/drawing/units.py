"""Numbers as people read them, each by the name of its figure."""

import math
import re

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

TITLES = {
    "decode_tokens_per_second": "decode tokens/s",
    "prefill_tokens_per_second": "prefill tokens/s",
    "first_token_seconds": "first token",
    "inter_token_seconds": "between tokens",
    "answer_seconds": "answer",
    "load_seconds": "load",
    "peak_memory_bytes": "peak memory",
    "device_memory_bytes": "device memory",
    "size_bytes": "size",
    "reference_log_likelihood": "log-likelihood of the reference",
}
PLAIN = frozenset({"errors", "perplexity", "reference_log_likelihood", "kl"})
"""Figures without a unit. What ends otherwise than in seconds, bytes or per_second is a share."""


def title(name: str) -> str:
    return TITLES.get(name, name)


def is_share(name: str) -> bool:
    """Between 0 and 1, and shown in percent."""
    return name not in PLAIN and not name.endswith(("_seconds", "_bytes", "_per_second"))


def show(name: str, value: float | None) -> str:
    if value is None:
        return NONE
    factor, unit = _scale(name, value)
    return _number(value * factor, _decimals(name, unit, value * factor)) + unit


def spread(name: str, low: float, value: float, high: float) -> str:
    """From low to high, in the unit of the value; empty where they are the same."""
    if low == high:
        return ""
    factor, unit = _scale(name, value)
    decimals = _decimals(name, unit, max(abs(low), abs(value), abs(high)) * factor)
    between = " to " if low < 0 else NONE
    return f"{_number(low * factor, decimals)}{between}{_number(high * factor, decimals)}"


def points(share: float) -> str:
    """A difference of shares, without its sign: 0.023 is 2.3 points."""
    return _number(abs(share) * 100, 1).removesuffix(".0")


def signed(name: str, value: float) -> str:
    """A difference, with its sign; of shares in points."""
    shown = _number(abs(value) * 100, 1) if is_share(name) else show(name, abs(value))
    return f"{MINUS if value < 0 else '+'}{shown}"


def ratio(value: float) -> str:
    return f"{_number(value, _significant(value, 2))}x"


def p_value(value: float | None) -> str:
    if value is None:
        return ""
    if value < 0.0001:
        return "p < 0.0001"
    return f"p = {value:.1g}" if value < 0.001 else f"p = {value:.2g}"


def count(number: int) -> str:
    return f"{number:,}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def printable(text: str) -> str:
    """Characters that neither HTML nor UTF-8 can hold, as signs that can be seen."""
    text = text.replace("\r\n", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", _sign, text)


def clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"


def _scale(name: str, value: float) -> tuple[float, str]:
    """What to multiply by, and the unit that follows."""
    if is_share(name):
        return 100, "%"
    if name.endswith("_seconds"):
        if 0 < abs(value) < 1e-4:
            return 1e6, " \N{MICRO SIGN}s"
        return (1000, " ms") if abs(value) < 1 else (1, " s")
    if name.endswith("_bytes"):  # powers of 1000, as disks are sold
        steps = ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B"))
        size, unit = next((step for step in steps if abs(value) >= step[0]), steps[-1])
        return 1 / size, unit
    return 1, ""


def _decimals(name: str, unit: str, scaled: float) -> int:
    if unit.strip() in ("%", "GB", "MB"):
        return 1
    if unit.strip() in ("kB", "B") or name == "errors":
        return 0
    return _significant(scaled, 3)


def _significant(number: float, digits: int) -> int:
    """Decimals that show so many digits of a number, at most four."""
    if number == 0 or not math.isfinite(number):
        return 0
    return min(4, max(0, digits - 1 - math.floor(math.log10(abs(number)))))


def _number(number: float, decimals: int) -> str:
    if not math.isfinite(number):
        return {math.inf: "\N{INFINITY}", -math.inf: f"{MINUS}\N{INFINITY}"}.get(number, "unknown")
    shown = f"{abs(number):,.{decimals}f}"
    return f"{MINUS}{shown}" if number < 0 and shown.strip("0.,") else shown
