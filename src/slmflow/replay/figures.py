"""When two numbers are the same: exactly, within a tolerance, or not; and which are noise.

The tolerance is that of ``torch.testing.assert_close`` for float32, in which models here sum up
(https://docs.pytorch.org/docs/stable/testing.html): what differs by less may come from the order of
additions. Of ``size_bytes``, a page of 4096 bytes: a packaged model's MLmodel holds ids and dates
of varying length.
"""

import math
from collections.abc import Iterator, Mapping

from slmflow.drawing import units
from slmflow.replay.results import Finding, Sameness, of_one_side

RELATIVE = 1.3e-6
ABSOLUTE = 1e-5
PAGE = 4096  # bytes
NOISE_ENDINGS = ("seconds", "_per_second", "memory_bytes")
NOT_RESULTS = frozenset({"parts_from_before"})
"""Metrics that say how a job went on, not what it gave."""


def is_noise(name: str) -> bool:
    return name.endswith(NOISE_ENDINGS)


def sameness(name: str, then: float, now: float) -> Sameness:
    if then == now or (math.isnan(then) and math.isnan(now)):
        return Sameness.identical
    if name != "size_bytes" and _whole(then) and _whole(now):  # counts, or none and all
        return Sameness.different
    absolute, relative = (PAGE, 0.0) if name == "size_bytes" else (ABSOLUTE, RELATIVE)
    if math.isclose(then, now, rel_tol=relative, abs_tol=absolute):
        return Sameness.equal
    return Sameness.different


def compare(part: str, then: Mapping[str, float], now: Mapping[str, float]) -> Iterator[Finding]:
    """A finding a figure; of noise the ratio, or that it was not measured this time."""
    for name in sorted({*then, *now} - NOT_RESULTS):
        was, is_now = then.get(name), now.get(name)
        if is_noise(name):
            if was and is_now is not None:
                ratio = f"{units.ratio(is_now / was)} of then"
                yield Finding(part, name, Sameness.noise, ratio)
            elif is_now is None:
                yield Finding(part, name, Sameness.noise, "not measured now")
        elif was is None or is_now is None:
            yield of_one_side(part, name, recorded_then=was is not None)
        else:
            yield Finding(part, name, sameness(name, was, is_now), words(was, is_now))


def words(then: float, now: float) -> str:
    """Digits enough to see the difference, where there is one."""
    if _whole(then) and _whole(now):
        return f"{then:,.0f}" if then == now else f"{then:,.0f} -> {now:,.0f}"
    for digits in (4, 8, 17):
        was, is_now = f"{then:.{digits}g}", f"{now:.{digits}g}"
        if was != is_now:
            return f"{was} -> {is_now}"
    return f"{then:.4g}"


def _whole(number: float) -> bool:
    return float(number).is_integer()
