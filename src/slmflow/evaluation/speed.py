"""How fast each candidate is: measured by turns, put together over the rounds.

Time to first token is that of the whole batch's prompts (prefill); inter-token latency is the time
of one step of the whole batch (decode), as MLPerf Inference and vLLM's benchmarks count them.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from slmflow.answering.reply import Measurement, Setting
from slmflow.config.evaluation import SpeedSettings
from slmflow.evaluation.data.dataset import open_dataset
from slmflow.evaluation.results import Figure, Speed, SpeedPoint
from slmflow.evaluation.subject import Subject

MEASURED = frozenset(
    {
        *("tokens_per_second", "prefill_tokens_per_second", "decode_tokens_per_second"),
        *("first_token_seconds", "inter_token_seconds", "load_seconds"),
        *("peak_memory_bytes", "device_memory_bytes"),
    }
)
"""The figures that are there only where speed is measured."""

Round = dict[Setting, list[Measurement]]


@dataclass
class Timings:
    """Of one candidate. ``unfit``: why a setting could not be measured."""

    rounds: list[Round] = field(default_factory=list)
    load_seconds: list[float] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    unfit: dict[Setting, str] = field(default_factory=dict)


def settings_of(speed: SpeedSettings) -> list[Setting]:
    lists = (speed.prompt_tokens, speed.new_tokens, speed.batch_sizes)
    return [Setting(*values) for values in product(*lists)]


def read_texts(path: Path) -> list[str]:
    """What prompts are cut from. Raises ``DataError``."""
    return [example.question for example in open_dataset("prompts", path, None, None)]


def measure_round(
    subject: Subject, speed: SpeedSettings, texts: Sequence[str], timings: Timings
) -> None:
    """Every setting, ``repeats`` times, each time with other texts."""
    measured: Round = {}
    number = len(timings.rounds)
    for setting in settings_of(speed):
        for repeat in range(speed.repeats):
            if setting in timings.unfit:
                break
            start = (number * speed.repeats + repeat) % len(texts)
            found = subject.measure([*texts[start:], *texts[:start]], setting)
            if isinstance(found, str):
                timings.unfit[setting] = found
            else:
                measured.setdefault(setting, []).append(found)
    timings.rounds.append(measured)
    if subject.loaded is not None:
        timings.load_seconds.append(subject.loaded.load_seconds)
        peak, device = subject.memory()
        timings.peak_memory_bytes = _most(timings.peak_memory_bytes, peak)
        timings.device_memory_bytes = _most(timings.device_memory_bytes, device)


def summarize(timings: Timings, speed: SpeedSettings) -> Speed:
    points = [
        _point(setting, [one[setting] for one in timings.rounds if setting in one])
        for setting in settings_of(speed)
        if any(setting in one for one in timings.rounds)
    ]
    return Speed(
        tuple(points),
        tuple(timings.load_seconds),
        timings.peak_memory_bytes,
        timings.device_memory_bytes,
        _unfit_words(timings),
    )


def by_round(timings: Timings, speed: SpeedSettings) -> dict[str, list[float]]:
    """Figures of the first setting, a value a round; those that cannot be seen are left out."""
    first = settings_of(speed)[0]
    rounds = [one[first] for one in timings.rounds if first in one]
    if len(rounds) < len(timings.rounds):
        return {}
    found: dict[str, list[float | None]] = {
        "tokens_per_second": [_median(map(_whole_rate, one)) for one in rounds],
        "prefill_tokens_per_second": [_prefill_rate(one) for one in rounds],
        "decode_tokens_per_second": [_decode_rate(one) for one in rounds],
        "first_token_seconds": [_median(m.first_token_seconds for m in one) for one in rounds],
        "inter_token_seconds": [_median(s for m in one for s in m.step_seconds) for one in rounds],
        "load_seconds": list(timings.load_seconds),
    }
    return {
        name: given
        for name, values in found.items()
        if (given := [value for value in values if value is not None]) and len(given) == len(rounds)
    }


def figures(timings: Timings, speed: SpeedSettings) -> dict[str, Figure]:
    """The median over the rounds, between their extremes; memory as it was at its peak."""
    found = {
        name: Figure(statistics.median(values), min(values), max(values))
        for name, values in by_round(timings, speed).items()
    }
    for name in ("peak_memory_bytes", "device_memory_bytes"):
        value = getattr(timings, name)
        if value is not None:
            found[name] = Figure(value, value, value)
    return found


def _point(setting: Setting, rounds: Sequence[Sequence[Measurement]]) -> SpeedPoint:
    every = [measurement for one in rounds for measurement in one]
    prefill, decode = [_prefill_rate(one) for one in rounds], [_decode_rate(one) for one in rounds]
    return SpeedPoint(
        setting.prompt_tokens,
        setting.new_tokens,
        setting.batch_size,
        tuple(m.first_token_seconds for m in every if m.first_token_seconds is not None),
        tuple(step for measurement in every for step in measurement.step_seconds),
        tuple(rate for rate in prefill if rate is not None),
        tuple(rate for rate in decode if rate is not None),
    )


def _prefill_rate(measurements: Sequence[Measurement]) -> float | None:
    return _median(
        m.prompt_tokens * m.setting.batch_size / m.first_token_seconds
        for m in measurements
        if m.first_token_seconds
    )


def _decode_rate(measurements: Sequence[Measurement]) -> float | None:
    """Tokens after each row's first over the time after it."""
    return _median(
        (m.completion_tokens - m.setting.batch_size) / (m.seconds - m.first_token_seconds)
        for m in measurements
        if m.first_token_seconds is not None
        and m.completion_tokens > m.setting.batch_size
        and m.seconds > m.first_token_seconds
    )


def _whole_rate(measurement: Measurement) -> float:
    return measurement.completion_tokens / measurement.seconds


def _median(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return statistics.median(given) if given else None


def _most(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _unfit_words(timings: Timings) -> tuple[str, ...]:
    return tuple(
        f"{setting.prompt_tokens} + {setting.new_tokens} tokens, batch of {setting.batch_size}: "
        f"{reason}"
        for setting, reason in timings.unfit.items()
    )
