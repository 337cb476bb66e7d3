"""The story of a sweep: find or open its tree, run what is left, judge, tell."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from slmflow import console
from slmflow.errors import TrackingError, UserError
from slmflow.listing import first
from slmflow.redaction import HIDDEN, redacted_overrides, without_secrets
from slmflow.sweeps.ledger import Ledger, search
from slmflow.sweeps.plan import Launch, Plan, Strategy
from slmflow.sweeps.record import log_result, move_aliases, result_of
from slmflow.sweeps.results import State, SweepResult
from slmflow.sweeps.run_points import hear_one_interrupt, run_points
from slmflow.sweeps.session import session
from slmflow.tracking.names import COMMAND, ENTRY_POINT, PLAN, RESUMES
from slmflow.tracking.parameters import ERROR, LONGEST_TAG, log_error, log_parameters
from slmflow.tracking.reason import reason
from slmflow.tracking.run import (
    absolute_tracking_uri,
    artifact_place,
    choose_experiment,
    log_config,
    open_run,
)

KEY = "slmflow.sweep.key"
RUN_ID = "MLFLOW_RUN_ID"
NEW_LINE = "\n"
NAMED = 3  # points that did not finish
SECONDS = "slmflow.sweep.seconds"  # that all sessions of the sweep took


class PointsFailed(UserError):
    """Some points did not finish; the others did."""


def run_sweep(plan: Plan, strategy: Strategy, launch: Launch) -> None:
    """Raises ``PointsFailed`` where points did not finish, ``TrackingError`` where another process
    drives this sweep."""
    started = time.monotonic()
    hear_one_interrupt()
    uri = absolute_tracking_uri()
    client = MlflowClient(uri)
    earlier = _earlier(plan, client)
    if earlier is not None:
        _demand_same_points(plan, str(earlier.info.run_id))
    with _tree(plan, earlier, client) as parent:
        ledger = Ledger(parent, uri)
        _tell_beginning(plan, ledger, earlier)
        try:
            run_points(plan, strategy, launch, ledger)
        finally:
            before = float(earlier.data.tags.get(SECONDS, "0")) if earlier is not None else 0.0
            seconds = before + time.monotonic() - started
            result = result_of(plan, ledger, seconds)
            log_result(result, client)
            client.set_tag(parent, SECONDS, f"{seconds:.1f}")
        if plan.aliases:
            move_aliases(result, client)
        _show(result)
        _demand_all(result, plan)


def recorded_overrides(run_id: str, entry_point: str) -> list[str]:
    """What was typed for the sweep that has this run. Raises ``TrackingError``."""
    plan = _recorded(run_id)
    if plan["entry_point"] != entry_point:
        raise TrackingError(
            f"sweep.resume={run_id} is a sweep of {plan['entry_point']}, not of {entry_point}; "
            f"type -e {plan['entry_point']} -P sweep.resume={run_id}"
        )
    if hidden := [typed for typed in plan["overrides"] if HIDDEN in typed]:
        raise TrackingError(
            f"sweep.resume={run_id}: {' '.join(hidden)} was typed with a secret, which is nowhere "
            "recorded; type the whole command again instead, which finds the same sweep"
        )
    return list(plan["overrides"])


def _recorded(run_id: str) -> dict[str, Any]:
    """The plan of an earlier sweep, as JSON."""
    try:
        plan: dict[str, Any] = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{PLAN}"))
        return plan
    except MlflowException as error:
        raise TrackingError(
            f"sweep.resume={run_id}: no sweep of that run id on {mlflow.get_tracking_uri()} "
            f"({reason(error)}); give the id of a sweep's own run, not of one of its points"
        ) from None


def _demand_same_points(plan: Plan, earlier: str) -> None:
    """A preset, or the options that ``glob(*)`` finds, may be others by now; numbers would not
    mean the same points."""
    then = [tuple(point) for point in _recorded(earlier)["points"]]
    if then != list(plan.points):
        raise TrackingError(
            f"the points of sweep {earlier} are others by now: its preset, or the options that "
            "glob(*) finds, have changed; sweep.resume=never runs the new ones in a sweep of "
            "their own"
        )


def _earlier(plan: Plan, client: MlflowClient) -> Run | None:
    """The sweep to go on with: the one that was named, or the newest of the same command."""
    resume = plan.settings.resume
    if resume == "never":
        return None
    if resume != "auto":
        return client.get_run(resume)
    found = search(client, _experiment(client), f"tags.`{KEY}` = '{plan.key}'")
    return max(found, key=lambda run: int(run.info.start_time), default=None)


def _experiment(client: MlflowClient) -> str:
    """Where the sweep's run is, or will be."""
    if RUN_ID in os.environ:
        return str(client.get_run(os.environ[RUN_ID]).info.experiment_id)
    return choose_experiment()


@contextmanager
def _tree(plan: Plan, earlier: Run | None, client: MlflowClient) -> Iterator[str]:
    """The id of the parent run, which this process drives alone and ends in a state that is true.

    An earlier sweep is claimed before its run is touched: another process may be driving it.
    """
    name = f"sweep {plan.name}"
    if earlier is None:
        with open_run(name) as run, session(run.info.run_id, client):
            yield run.info.run_id
        return
    parent = str(earlier.info.run_id)
    with session(parent, client):
        if ERROR in earlier.data.tags:  # of the session before
            client.delete_tag(parent, ERROR)
        if RUN_ID not in os.environ:
            os.environ[RUN_ID] = parent  # opened again, rather than a new one
        with open_run(name) as run, _standing_for(run.info.run_id, parent, client):
            yield parent


@contextmanager
def _standing_for(mine: str, parent: str, client: MlflowClient) -> Iterator[None]:
    """Where ``mlflow run`` opened a run of its own to go on with an earlier sweep, that run says
    so, and the earlier one ends as this one does."""
    if mine == parent:
        yield
        return
    client.set_tag(mine, RESUMES, parent)
    client.update_run(parent, status="RUNNING")
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except BaseException as error:
        log_error(str(error) or type(error).__name__, parent, client)
        raise
    finally:
        client.set_terminated(parent, status)


def _tell_beginning(plan: Plan, ledger: Ledger, earlier: Run | None) -> None:
    console.heading(f"sweep: {plan.total} points of {plan.name}, {plan.launcher} launcher")
    if earlier is not None:
        done = sum(one.state is State.finished for one in ledger.results())
        console.prose(
            f"goes on with run {ledger.parent}, begun {_when(earlier)}: {done} of {plan.total} "
            "points have finished, with the models and data of that time "
            "(sweep.resume=never runs all of them anew)"
        )
        return
    settings = asdict(plan.settings)
    overrides = redacted_overrides(plan.overrides)
    command = f"{plan.entry_point} {' '.join(overrides)}"
    if len(command) > LONGEST_TAG:
        command = f"{plan.entry_point} (what was typed is in the artifact {PLAN})"
    known = mlflow.get_run(ledger.parent).data.params
    told = {f"sweep.{name}": str(value) for name, value in settings.items() if name != "over"}
    log_parameters({name: value for name, value in told.items() if name not in known})
    mlflow.log_dict({**without_secrets(plan.as_json()), "overrides": overrides}, PLAN)
    log_config(plan.config, plan.choices, plan.entry_point, ("sweep",), plan.overrides)
    # The key last: who finds the sweep by it finds its plan, too.
    tags = {ENTRY_POINT: plan.entry_point, COMMAND: command, KEY: plan.key}
    mlflow.set_tags(tags)


def _when(run: Run) -> str:
    """In UTC: who goes on may be elsewhere."""
    begun = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    return begun.strftime("%Y-%m-%d %H:%M UTC")


def _show(result: SweepResult) -> None:
    from slmflow.sweeps.show import show_sweep  # late: only at the end

    show_sweep(result)
    if result.best is not None and len(result.points) > 1:
        console.prose(
            "Figures are compared as they are; whether a difference of quality is more than "
            "chance, evaluate tells of the two models."
        )
    console.note(f"the whole page: {artifact_place(result.run_id, 'sweep.html')}")


def _demand_all(result: SweepResult, plan: Plan) -> None:
    bad = [one for one in result.points if one.state in (State.failed, State.killed)]
    if not bad:
        return
    told = [f"{one.words}: {(one.message or '').partition(NEW_LINE)[0]}" for one in bad]
    again = f"sweep.resume={result.run_id}"
    if plan.settings.resume != "never":
        again = "the same command again"
    raise PointsFailed(
        f"{len(bad)} of {plan.total} points did not finish ({first(told, NAMED, '; ')}); "
        f"{again} runs these alone"
    )
