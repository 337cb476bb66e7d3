"""A recorded sweep, run again: its points from what each of them recorded, in a tree of its own."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

from slmflow.config.sweep import Strategy as Kind
from slmflow.config.sweep import Sweep
from slmflow.sweeps.drive import PointsFailed, run_sweep
from slmflow.sweeps.plan import Plan, common
from slmflow.sweeps.point import Task, stop_kept
from slmflow.sweeps.strategy import Grid


def run_again(
    recorded: Mapping[str, Any], orders: Mapping[tuple[str, ...], Mapping[str, Any]]
) -> None:
    """``recorded`` is the plan; ``orders`` what to carry out for a point, by what varies. A point
    of the plan without an order is left waiting.

    One after another, in a process that this one keeps. Points that fail are told on their runs,
    as in any sweep; whether they did so then, the caller compares. No alias moves.
    """
    told = recorded["settings"]
    plan = Plan(
        entry_point=recorded["entry_point"],
        name=recorded["name"],
        launcher="basic",
        overrides=tuple(recorded["overrides"]),
        key=f"rerun-{uuid4().hex}",  # that no later sweep takes it for its own
        points=tuple(tuple(point) for point in recorded["points"]) or tuple(orders),
        settings=Sweep(
            objectives=told["objectives"],
            strategy=Kind.grid,  # what was chosen from results then is known by now
            timeout=told["timeout"],
            resume="never",
        ),
        aliases=False,
        config=common([order["values"] for order in orders.values()]),
        choices=common([order["choices"] for order in orders.values()]),
    )

    def launch(task: Task) -> Mapping[int, str]:
        for index, point in enumerate(task.points):
            task.repeat(index, orders[point.overrides])
        return {}

    try:
        with suppress(PointsFailed):
            run_sweep(plan, Grid(list(orders)), launch)
    finally:
        stop_kept()
