"""What the parent run of a sweep keeps: the table, the page, the best point, the counts."""

import json

from mlflow.tracking import MlflowClient

from slmflow import console
from slmflow.redaction import redacted
from slmflow.sweeps import judge
from slmflow.sweeps.ledger import Ledger
from slmflow.sweeps.plan import Plan
from slmflow.sweeps.results import PointResult, State, SweepResult
from slmflow.tracking.parameters import set_tag
from slmflow.tracking.registry import point_alias

ALIASED = "slmflow.sweep.aliased"  # the point whose models have the aliases


def result_of(plan: Plan, ledger: Ledger, seconds: float) -> SweepResult:
    begun = {one.number: one for one in ledger.results()}
    points = [begun.get(n) or _waiting(n, overrides) for n, overrides in enumerate(plan.points)]
    if not plan.points:
        points = [begun[number] for number in sorted(begun)]
    objectives = judge.measured(plan.settings.directions, points)
    return SweepResult(
        name=plan.name,
        run_id=ledger.parent,
        entry_point=plan.entry_point,
        launcher=plan.launcher,
        keys=tuple(dict.fromkeys(key for one in points for key in one.overrides)),
        objectives=objectives,
        unmeasured=tuple(name for name in plan.settings.objectives if name not in objectives),
        points=tuple(points),
        best=judge.best(objectives, points),
        ties=judge.ties(objectives, points),
        front=judge.front(objectives, points),
        seconds=seconds,
    )


def log_result(result: SweepResult, client: MlflowClient) -> None:
    """Into the parent run: artifacts, counts, and the best point's figures as ``best/...``."""
    from slmflow.sweeps.report.html import render_html  # late: matplotlib takes half a second
    from slmflow.sweeps.report.table import render_csv

    run_id = result.run_id
    client.log_text(run_id, redacted(render_csv(result)), "sweep.csv")
    client.log_text(run_id, redacted(render_html(result)), "sweep.html")
    client.log_text(run_id, redacted(json.dumps(result.as_json(), indent=1)), "sweep.json")
    for state in (State.finished, State.failed, State.killed, State.pruned):
        client.log_metric(run_id, f"points.{state}", result.count(state))
    client.log_metric(run_id, "points.skipped", result.count(State.waiting))
    if result.best is not None:
        best = result.point(result.best)
        client.set_tag(run_id, "slmflow.sweep.best", best.run_id)
        set_tag(run_id, "slmflow.sweep.best.overrides", best.words, client)
        for name in result.objectives:
            if name in best.figures:
                client.log_metric(run_id, f"best/{name}", best.figures[name])


def move_aliases(result: SweepResult, client: MlflowClient) -> None:
    """Points register versions; the aliases of their kinds go to those of the best one. Once: who
    repeats a finished sweep must not take them from a version that was registered since."""
    if result.best is None:
        return
    best = result.point(result.best)
    if client.get_run(result.run_id).data.tags.get(ALIASED) == best.run_id:
        return
    for uri in best.models:
        with console.step("point the alias at the best point's model") as told:
            told += [point_alias(uri), uri]
    client.set_tag(result.run_id, ALIASED, best.run_id)


def _waiting(number: int, overrides: tuple[str, ...]) -> PointResult:
    typed = dict(override.split("=", 1) for override in overrides)
    return PointResult(number, typed, None, State.waiting, {}, None)
