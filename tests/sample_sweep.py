"""Sweeps as the report meets them: whole, small, large, hostile."""

import math
from collections.abc import Mapping
from dataclasses import replace

from slmflow.config.sweep import OBJECTIVES, Sweep
from slmflow.sweeps import judge
from slmflow.sweeps.results import PointResult, State, SweepResult

HOSTILE = (
    "<script>alert('sweep')</script> & \"quotes\" $x$ \x00\x1b[31m\r\n\u202e=cmd|' /C calc'!A0"
)


def point(
    number: int,
    overrides: Mapping[str, str],
    figures: Mapping[str, float] | None = None,
    state: State = State.finished,
    message: str | None = None,
) -> PointResult:
    begun = state is not State.waiting
    return PointResult(
        number,
        overrides,
        f"{number:032x}" if begun else None,
        state,
        figures or {},
        3.5 + number if begun else None,
        message,
        (f"models:/phi3-demo/{number + 1}",) if state is State.finished else (),
        attempts=1 if begun else 0,
    )


def judged(
    points: list[PointResult], objectives: tuple[str, ...] = tuple(OBJECTIVES)
) -> SweepResult:
    """As the sweep makes it."""
    wanted = Sweep(objectives=list(objectives)).directions
    counted = judge.measured(wanted, points)
    return SweepResult(
        name="custom_onnx phi3-demo",
        run_id="f" * 32,
        entry_point="custom_onnx",
        launcher="basic",
        keys=tuple(dict.fromkeys(key for one in points for key in one.overrides)),
        objectives=counted,
        unmeasured=tuple(name for name in wanted if name not in counted),
        points=tuple(points),
        best=judge.best(wanted, points),
        ties=judge.ties(wanted, points),
        front=judge.front(wanted, points),
        seconds=127.0,
    )


def measured(number: int, precision: str, block: int, level: int) -> PointResult:
    bits = {"int4": 4, "int8": 8, "fp32": 32}[precision]
    figures = {
        "correct": 0.9 - 0.4 / bits - block / 2000,
        "exact_match": 0.8 - 0.4 / bits,
        "decode_tokens_per_second": 1200 / bits + block / 2 + 20 * level,
        "peak_memory_bytes": 4e8 * bits / 4 + 1e6 * number,
        "size_bytes": 1.2e8 * bits / 4 + 16e6 * 32 / block,
    }
    overrides = {
        "hardware.precision": precision,
        "build.block_size": str(block),
        "build.accuracy_level": str(level),
    }
    return point(number, overrides, figures)


def sample() -> SweepResult:
    """Twelve points, of which some failed."""
    grid = [(p, b, a) for p in ("int4", "int8", "fp32") for b in (32, 128) for a in (0, 4)]
    points = [measured(number, *chosen) for number, chosen in enumerate(grid)]
    broken = {
        8: (State.failed, "BuildError: fp32 takes no accuracy_level\nallowed: 0"),
        9: (State.failed, "BuildError: fp32 takes no accuracy_level\nallowed: 0"),
        10: (State.killed, "its process was killed, most likely for want of memory"),
        11: (State.waiting, None),
    }
    for number, (state, message) in broken.items():
        points[number] = point(number, points[number].overrides, {}, state, message)
    return judged(points)


def single() -> SweepResult:
    return judged([point(0, {"search.temperature": "0.0"}, {"correct": 0.5})])


def nothing_finished() -> SweepResult:
    return judged(
        [
            point(0, {"model": "phi3_demo"}, {"correct": 0.1}, State.failed, "no such model"),
            point(1, {"model": "phi3_mini_4k"}, {}, State.waiting),
        ]
    )


def hostile() -> SweepResult:
    overrides = [{"task.system": HOSTILE, "k" * 90: "v" * 300}, {"task.system": "b", "k" * 90: "w"}]
    return replace(
        judged(
            [
                point(0, overrides[0], {"correct": 0.5, "size_bytes": math.inf}),
                point(1, overrides[1], {"correct": 0.4, "size_bytes": 3.0}),
                point(2, overrides[0], {}, State.failed, HOSTILE * 40),
            ]
        ),
        name=HOSTILE,
    )


def large() -> SweepResult:
    """200 points of a search, four keys."""
    points = []
    for number in range(200):
        temperature = (number * 0.6180339887) % 1.5
        top_k = 1 + (number * number) % 997
        model = f"organisation/model-number-{number % 9}"
        figures = {
            "correct": 0.9 - (temperature - 0.4) ** 2 / 3 - 0.01 * (number % 9),
            "decode_tokens_per_second": 40.0 + 3 * (number % 9) ** 2 + top_k / 50,
        }
        overrides = {
            "search.temperature": repr(temperature),
            "search.top_k": str(top_k),
            "model": model,
            "hardware.precision": ("int4", "int8")[number % 2],
        }
        state = State.failed if number % 17 == 3 else State.finished
        message = f"failed in its own way {number % 40}" if state is State.failed else None
        points.append(point(number, overrides, figures, state, message))
    return judged(points)
