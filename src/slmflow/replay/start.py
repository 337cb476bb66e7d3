"""The story of a rerun: read the record, say what has changed, run it again, compare."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from slmflow import console
from slmflow.config.rerun import Rerun, RerunConfig
from slmflow.errors import TrackingError, UserError
from slmflow.replay import circumstances, models, weights
from slmflow.replay.builds import own_builds
from slmflow.replay.compare import compare, pairs
from slmflow.replay.find import AGAIN, find
from slmflow.replay.lock import commits_of_then
from slmflow.replay.pins import Order, Pinned, pin
from slmflow.replay.record import PROVENANCE, Record, read
from slmflow.replay.results import Circumstances, Difference, Finding, Report, Sameness
from slmflow.replay.serving import compare_served
from slmflow.replay.show import show_beginning, show_circumstances, show_report, verdict_words
from slmflow.tracking.names import COMMAND, PLAN
from slmflow.tracking.run import artifact_place

OF = "slmflow.rerun.of"  # on the run that was made, and on the rerun: the run of then
BY = "slmflow.rerun.by"  # on the run of then: the runs that repeat it, the newest last
VERDICT = "slmflow.rerun.verdict"
PAGE = "rerun.html"
KEPT = 100  # ids of reruns in the tag of a run, which holds 5000 characters everywhere

Again = Callable[[Order], None]
Orders = Mapping[tuple[str, ...], Pinned]
SweepAgain = Callable[[Mapping[str, Any], Mapping[tuple[str, ...], Order]], None]


class RerunDiffers(UserError):
    """With ``rerun.strict=true``, a result is not what it was."""

    exit_code = 2  # 1 is a rerun that failed; this one worked and says no


def recorded(run_id: str) -> Record:
    """The run that was typed, as it is recorded. Raises ``TrackingError``."""
    return read(find(run_id))


def rerun(record: Record, settings: RerunConfig, again: Again, sweep_again: SweepAgain) -> Report:
    """Within the active run, which gets the report; the run that is made is its child.

    ``again`` carries out one order, ``sweep_again`` a sweep's plan with an order a point. Raises
    what they raise, but for a gate that lets none pass: that is a result like others.
    """
    mlflow.set_tag(OF, record.run_id)
    with ExitStack() as stack:
        builds = stack.enter_context(own_builds()) if settings.rerun.fresh else None
        orders = _orders(record, settings, builds)
        configs = [one.config for one in orders.values()]
        unlocked = stack.enter_context(commits_of_then(configs))
        report = _beginning(record, orders, settings.rerun, unlocked)
        if record.entry_point == "serve":  # it ends with Ctrl-C, so what can be said is said first
            report = replace(report, findings=compare_served(record))
            _tell(report)
        try:
            _carry_out(record, orders, again, sweep_again)
        except UserError as error:
            if getattr(error, "exit_code", 1) != 2:
                _tell(_compared(report, record, str(error)))
                raise
            console.prose(str(error))
    report = _compared(report, record)
    if record.entry_point == "serve":  # told already, before it listened
        _log(report)
    else:
        _tell(report)
    return report


def demand_the_same(report: Report) -> None:
    """Raises ``RerunDiffers`` for results or weights that differ, and where nothing was compared;
    other code, libraries and machines are told, and are none of them."""
    different = report.of_sameness(Sameness.different)
    if different:
        lines = [f"  {one.part}: {one.what}: {one.words}" for one in different]
        raise RerunDiffers("\n".join([f"rerun.strict=true, and {verdict_words(report)}:", *lines]))
    if report.verdict is Sameness.unknown:
        raise RerunDiffers(
            f"rerun.strict=true, and nothing of run {report.of} could be compared: it recorded "
            "none of what docs/rerun.md lists, or this run did not get that far"
        )


def _orders(record: Record, settings: RerunConfig, builds: Path | None) -> Orders:
    """The one run, or the points of a sweep that had a config, by what varies."""
    runs, own = _repeated(record), mlflow.active_run()
    assert own is not None
    if not runs:
        raise TrackingError(
            f"sweep {record.run_id} has no point that got as far as its config; type its command "
            f"again: {record.tags.get(COMMAND, record.name)}"
        )
    return {run.varies: pin(run, settings, own.info.run_id, builds) for run in runs}


def _repeated(record: Record) -> list[Record]:
    return [one for one in record.parts if one.values is not None] if record.sweep else [record]


def _beginning(record: Record, orders: Orders, settings: Rerun, unlocked: Sequence[str]) -> Report:
    """What there is to say before anything runs, shown."""
    pins = pins_of(orders)
    told = [note for one in orders.values() for note in one.notes]
    notes = list(dict.fromkeys([*told, *unlocked]))
    notes += [f"taken from elsewhere: {key}={at}" for key, at in settings.moved.items()]
    show_beginning(record, notes, [f"{key}={_shown(value)}" for key, value in pins.items()])
    changed = _circumstances(record, orders)
    show_circumstances(changed)
    return Report(
        of=record.run_id,
        run_id=None,
        name=record.name,
        entry_point=str(record.entry_point),
        began=record.began,
        pinned=pins,
        notes=notes,
        circumstances=changed,
        findings=(),
    )


def pins_of(orders: Orders) -> dict[str, Any]:
    """Of all of them: a key that is not pinned alike in each is told with what varies."""
    told: dict[str, Any] = {}
    for varies, one in orders.items():
        for key, value in one.pins.items():
            alike = all(other.pins.get(key) == value for other in orders.values())
            told[key if alike else f"{' '.join(varies)}: {key}"] = value
    return told


def _circumstances(record: Record, orders: Orders) -> Circumstances:
    """Now is what this rerun's own run has just recorded of itself."""
    run = mlflow.active_run()
    assert run is not None
    now = read(MlflowClient().get_run(run.info.run_id))
    then = next((r for r in record.everywhere() if PROVENANCE in r.documents), record)
    was, is_now = then.documents.get(PROVENANCE), now.documents.get(PROVENANCE)
    found = circumstances.compare(was, is_now, then.run_id)
    changed = [*_other_weights(record, orders), *_other_models(record)]
    return replace(found, differences=[*found.differences, *changed])


def _other_weights(record: Record, orders: Orders) -> list[Difference]:
    if not any("revision" in part.tags for part in record.everywhere()):  # it packaged nothing
        return []
    with console.step("look at the weights") as told:
        runs = [(run, orders[run.varies].config.model) for run in _repeated(record)]
        changed = weights.changed(runs, console.note)
        told.append("other files by now" if changed else "as they were")
    return changed


def _other_models(record: Record) -> list[Difference]:
    runs = _repeated(record)
    if not any(models.models_of(run) for run in runs):
        return []
    with console.step("look at the models") as told:
        changed = models.changed(runs)
        told.append("others by now" if changed else "as they were")
    return changed


def _carry_out(record: Record, orders: Orders, again: Again, sweep_again: SweepAgain) -> None:
    told = {varies: one.order for varies, one in orders.items()}
    if record.sweep:
        sweep_again(record.documents[PLAN], told)
    else:
        again(*told.values())


def _compared(report: Report, record: Record, error: str | None = None) -> Report:
    made = _made(record)
    _link(record, made)
    if made is None:
        return replace(report, error=error or "it did not begin")
    findings = [*report.findings, *compare(record, made)]
    return replace(report, run_id=made.run_id, findings=findings, error=error)


def _made(record: Record) -> Record | None:
    """The run below this one that repeats the record."""
    run = mlflow.active_run()
    assert run is not None
    below = read(MlflowClient().get_run(run.info.run_id)).parts
    return next((one for one in below if one.entry_point == record.entry_point), None)


def _link(then: Record, now: Record | None) -> None:
    """Both ways, and so for their parts; where the run of then cannot be written, one way."""
    if now is None:
        return
    client = MlflowClient()
    mlflow.set_tag(AGAIN, now.run_id)
    for one, other in [(then, now), *pairs(then, now)]:
        client.set_tag(other.run_id, OF, one.run_id)
        with suppress(MlflowException):
            others = client.get_run(one.run_id).data.tags.get(BY, "").split()
            told = list(dict.fromkeys([*others, other.run_id]))
            client.set_tag(one.run_id, BY, " ".join(told[-KEPT:]))


def _tell(report: Report) -> None:
    """In the terminal and into the active run."""
    run = mlflow.active_run()
    assert run is not None
    _log(report)
    show_report(report, artifact_place(run.info.run_id, PAGE))


def _log(report: Report) -> None:
    """Into the active run, in place of what was logged of it before."""
    from slmflow.replay.report import render_html  # late: only at the end

    mlflow.log_text(json.dumps(report.as_json(), indent=1, default=str), "rerun.json")
    mlflow.log_text(render_html(report), PAGE)
    mlflow.set_tags({VERDICT: report.verdict.value, "slmflow.rerun.summary": verdict_words(report)})
    for sameness in (Sameness.identical, Sameness.equal, Sameness.different):
        name = f"rerun.{sameness.name}"
        mlflow.log_metric(name, len(report.of_sameness(sameness)))


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


__all__ = ["Finding", "RerunDiffers", "demand_the_same", "recorded", "rerun"]
