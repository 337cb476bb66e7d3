"""Measurements to figures: by hand-made ones whose rates are known."""

from dataclasses import replace

import pytest

from slmflow.answering.reply import Measurement, Setting
from slmflow.config.evaluation import SpeedSettings
from slmflow.evaluation.speed import Timings, by_round, figures, measure_round, summarize

SETTING = Setting(prompt_tokens=64, new_tokens=5, batch_size=1)
SPEED = SpeedSettings(rounds=2, repeats=1, prompt_tokens=[64], new_tokens=[5], batch_sizes=[1])


def measured(first: float, step: float, setting: Setting = SETTING) -> Measurement:
    steps = (step,) * (setting.new_tokens - 1)
    tokens = setting.new_tokens * setting.batch_size
    return Measurement(setting, setting.prompt_tokens, tokens, first + sum(steps), first, steps)


class Stopwatch:
    """A subject that was timed already."""

    loaded = None

    def __init__(self, *given: Measurement | str) -> None:
        self._given = list(given)
        self.texts: list[str] = []

    def measure(self, texts: list[str], setting: Setting) -> Measurement | str:
        self.texts.append(texts[0])
        return self._given.pop(0)


def timings(*rounds: Measurement) -> Timings:
    return Timings([{one.setting: [one]} for one in rounds], load_seconds=[2.0, 3.0])


def test_rates_are_tokens_of_prefill_and_decode_apart() -> None:
    found = figures(timings(measured(0.5, 0.1), measured(0.5, 0.1)), SPEED)
    assert found["prefill_tokens_per_second"].value == pytest.approx(64 / 0.5)
    assert found["decode_tokens_per_second"].value == pytest.approx(1 / 0.1)
    assert found["first_token_seconds"].value == pytest.approx(0.5)
    assert found["inter_token_seconds"].value == pytest.approx(0.1)
    assert found["tokens_per_second"].value == pytest.approx(5 / 0.9)


def test_a_batch_counts_the_tokens_of_all_of_its_rows() -> None:
    setting = replace(SETTING, batch_size=8)
    speed = replace(SPEED, batch_sizes=[8])
    found = figures(timings(measured(0.5, 0.1, setting), measured(0.5, 0.1, setting)), speed)
    assert found["prefill_tokens_per_second"].value == pytest.approx(8 * 64 / 0.5)
    assert found["decode_tokens_per_second"].value == pytest.approx(8 / 0.1)


def test_a_figure_lies_between_the_extremes_of_its_rounds() -> None:
    found = figures(timings(measured(0.4, 0.1), measured(0.6, 0.2)), SPEED)
    assert found["first_token_seconds"].low == pytest.approx(0.4)
    assert found["first_token_seconds"].high == pytest.approx(0.6)
    assert found["load_seconds"].value == pytest.approx(2.5)
    assert by_round(timings(measured(0.4, 0.1), measured(0.6, 0.2)), SPEED)[
        "decode_tokens_per_second"
    ] == pytest.approx([10, 5])


def test_what_a_model_does_not_show_is_no_figure() -> None:
    whole = Measurement(SETTING, 64, 5, 1.0, None)
    found = figures(timings(whole, whole), SPEED)
    assert found["tokens_per_second"].value == pytest.approx(5)
    assert not {"first_token_seconds", "decode_tokens_per_second"} & found.keys()
    (point,) = summarize(timings(whole, whole), SPEED).points
    assert point.first_token_seconds == point.prefill_tokens_per_second == ()


def test_a_setting_that_a_model_cannot_do_is_tried_once_and_told() -> None:
    speed = replace(SPEED, repeats=3, prompt_tokens=[64, 9_000])
    subject = Stopwatch(*[measured(0.5, 0.1)] * 3, "too long", *[measured(0.5, 0.1)] * 3)
    found = Timings()
    measure_round(subject, speed, ["text"], found)  # type: ignore[arg-type]
    measure_round(subject, speed, ["text"], found)  # type: ignore[arg-type]
    assert list(found.unfit.values()) == ["too long"]
    assert len(summarize(found, speed).points) == 1


def test_every_measurement_reads_another_text() -> None:
    speed = replace(SPEED, repeats=3)
    subject = Stopwatch(*[measured(0.5, 0.1)] * 6)
    found = Timings()
    for _ in range(2):
        measure_round(subject, speed, list("abcdef"), found)  # type: ignore[arg-type]
    assert subject.texts == list("abcdef")
