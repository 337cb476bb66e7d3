"""Tables of speed: a setting each, loading and memory, ratios."""

import numpy as np

from slmflow.drawing import units
from slmflow.evaluation.report.tables import Cell, Table, figure_cell, name_cell, rounds_cell
from slmflow.evaluation.results import CandidateResult, Evaluation, Figure, Speed, SpeedPoint

PERCENTILES = (50, 90, 99)
ENOUGH = 100  # measurements that a 99th percentile stands on

Setting = tuple[int, int, int]  # prompt tokens, new tokens, batch size


def settings(evaluation: Evaluation) -> list[Setting]:
    found = [
        setting_of(point)
        for one in evaluation.candidates
        if one.speed is not None
        for point in one.speed.points
    ]
    return list(dict.fromkeys(found))


def setting_of(point: SpeedPoint) -> Setting:
    return point.prompt_tokens, point.new_tokens, point.batch_size


def describe(setting: Setting) -> str:
    prompt, new, batch = setting
    batched = f"batch of {batch}" if batch > 1 else "one at a time"
    return f"{units.count(prompt)} prompt tokens, {units.count(new)} new, {batched}"


def point_at(speed: Speed | None, setting: Setting) -> SpeedPoint | None:
    points = speed.points if speed is not None else ()
    return next((point for point in points if setting_of(point) == setting), None)


def tables(evaluation: Evaluation) -> list[Table]:
    return [_setting_table(evaluation, setting) for setting in settings(evaluation)]


def loading(evaluation: Evaluation) -> Table | None:
    """Seconds to load and bytes in use; None where nothing was measured."""
    names = ("load_seconds", "peak_memory_bytes", "device_memory_bytes", "size_bytes")
    found = [{name: _cost(one, name) for name in names} for one in evaluation.candidates]
    present = [name for name in names if any(cells[name].text != units.NONE for cells in found)]
    if not present:
        return None
    return Table(
        "Loading, memory and size",
        ("model", *map(units.title, present)),
        tuple(
            (name_cell(evaluation, one.label), *(cells[name] for name in present))
            for one, cells in zip(evaluation.candidates, found, strict=True)
        ),
    )


def ratios(evaluation: Evaluation) -> Table | None:
    """Each candidate over its reference; None where nothing can be divided."""
    names = list(dict.fromkeys(name for one in evaluation.comparisons for name in one.ratios))
    if not names:
        return None
    return Table(
        f"As a multiple of {evaluation.comparisons[0].reference}",
        ("model", *map(units.title, names)),
        tuple(
            (
                name_cell(evaluation, one.label),
                *(_ratio_cell(one.ratios.get(name)) for name in names),
            )
            for one in evaluation.comparisons
        ),
    )


def percentiles_note(evaluation: Evaluation) -> str:
    """What a percentile of so few measurements is worth."""
    counts = [
        len(point.first_token_seconds)
        for one in evaluation.candidates
        if one.speed is not None
        for point in one.speed.points
        if point.first_token_seconds
    ]
    if not counts or min(counts) >= ENOUGH:
        return ""
    return (
        f"The first token was timed {min(counts)} times where it was timed least: "
        "its p99 is little more than the slowest of them."
    )


def _setting_table(evaluation: Evaluation, setting: Setting) -> Table:
    times = [f"{kind} p{share}" for kind in ("first", "next") for share in PERCENTILES]
    rows = []
    for one in evaluation.candidates:
        point = point_at(one.speed, setting)
        if point is not None:
            rows.append((name_cell(evaluation, one.label), *_point_cells(point)))
    return Table(
        describe(setting),
        ("model", "prefill tokens/s", "decode tokens/s", *times),
        tuple(rows),
    )


def _point_cells(point: SpeedPoint) -> tuple[Cell, ...]:
    return (
        rounds_cell("prefill_tokens_per_second", point.prefill_tokens_per_second),
        rounds_cell("decode_tokens_per_second", point.decode_tokens_per_second),
        *_percentile_cells("first_token_seconds", point.first_token_seconds),
        *_percentile_cells("inter_token_seconds", point.inter_token_seconds),
    )


def _percentile_cells(name: str, seconds: tuple[float, ...]) -> list[Cell]:
    if not seconds:
        return [Cell(units.NONE) for _ in PERCENTILES]
    return [Cell(units.show(name, float(value))) for value in np.percentile(seconds, PERCENTILES)]


def _cost(candidate: CandidateResult, name: str) -> Cell:
    """Where there are rounds, what they measured; else the figure."""
    speed, figure = candidate.speed, candidate.figures.get(name)
    if speed is None or name == "size_bytes":
        return figure_cell(name, figure)
    if name == "load_seconds" and speed.load_seconds:
        return rounds_cell(name, speed.load_seconds)
    seen = {
        "peak_memory_bytes": speed.peak_memory_bytes,
        "device_memory_bytes": speed.device_memory_bytes,
    }.get(name)
    return figure_cell(name, figure) if seen is None else Cell(units.show(name, seen))


def _ratio_cell(figure: Figure | None) -> Cell:
    if figure is None:
        return Cell(units.NONE)
    low, high = units.ratio(figure.low), units.ratio(figure.high)
    return Cell(units.ratio(figure.value), "" if low == high else f"{low}{units.NONE}{high}")
