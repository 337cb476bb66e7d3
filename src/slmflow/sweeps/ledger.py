"""The tree of a sweep on the tracking server: one parent run, below it one run a point.

The server is the only truth: who resumes elsewhere sees the same. A point that is begun again gets
a new run, and the earlier attempt moves below that one, so that a sweep has one child a point. For
the moment in between it has two: the newest counts.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mlflow.entities import Run, RunStatus, ViewType
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from slmflow.sweeps.results import PointResult, State
from slmflow.tracking.follow import PRUNED, SO_FAR
from slmflow.tracking.names import MADE_BY, OVERRIDES, PARENT, POINT
from slmflow.tracking.parameters import ERROR, LONGEST_TAG, log_error, set_tag, whole_tag

ATTEMPTS = "slmflow.sweep.attempts"
MODELS = "slmflow.models"
STATES = {
    "SCHEDULED": State.waiting,
    "RUNNING": State.running,
    "FINISHED": State.finished,
    "FAILED": State.failed,
    "KILLED": State.killed,
}
JOBS = "jobs.json"
PAGE = 500


@dataclass(frozen=True)
class Point:
    """One to run: its place in the sweep, and what varies, ``KEY=VALUE`` as typed."""

    number: int
    overrides: tuple[str, ...]

    @property
    def words(self) -> str:
        return " ".join(self.overrides)


class Ledger:
    """The points of one parent run. Every method asks the tracking server."""

    def __init__(self, parent: str, tracking_uri: str) -> None:
        self.parent = parent
        self.tracking_uri = tracking_uri
        self._client = MlflowClient(tracking_uri)
        self._known: dict[str, list[str]] = {}  # what varies, by the point's run
        self.experiment: str = self._client.get_run(parent).info.experiment_id

    def begin(self, point: Point) -> str | None:
        """The id of a new run for the point; None where one has FINISHED already."""
        earlier = self._runs(f"tags.`{POINT}` = '{point.number}'")
        if any(run.info.status == "FINISHED" for run in earlier):
            return None
        varies = json.dumps(point.overrides)
        own = {POINT: str(point.number), OVERRIDES: varies}
        tags = {
            **resolve_tags(),
            PARENT: self.parent,
            MADE_BY: self.parent,
            ATTEMPTS: str(1 + max((attempts_of(run) for run in earlier), default=0)),
            **(own if len(varies) <= LONGEST_TAG else {}),
        }
        run = self._client.create_run(self.experiment, tags=tags, run_name=point.words[:250])
        if len(varies) > LONGEST_TAG:  # it counts as a point once what varies can be read
            set_tag(run.info.run_id, OVERRIDES, varies, self._client)
            self._client.set_tag(run.info.run_id, POINT, str(point.number))
        for attempt in earlier:
            end_tree(self._client, attempt, State.killed, "its process or its job went away")
            self._client.set_tag(attempt.info.run_id, PARENT, run.info.run_id)
        return str(run.info.run_id)

    def results(self, since: int = 0) -> list[PointResult]:
        """Every point that was begun, by number; those begun at or after ``since`` (milliseconds,
        as the server gives them) where only these matter."""
        where = f"attributes.start_time >= {since}" if since else ""
        newest: dict[str, Run] = {}
        for run in sorted(self._runs(where), key=attempts_of):
            newest[run.data.tags[POINT]] = run  # the one before may not have moved below it yet
        found = (result_of(run, self._varies(run)) for run in newest.values())
        return sorted(found, key=lambda one: one.number)

    def so_far(self, result: PointResult, objective: str) -> list[tuple[int, float]]:
        """What a point that is followed reported: rows, and the objective over these."""
        if result.run_id is None or f"{SO_FAR}{objective}" not in result.reported:
            return []
        history = self._client.get_metric_history(result.run_id, f"{SO_FAR}{objective}")
        return [(metric.step, metric.value) for metric in history]

    def stop(self, result: PointResult, why: str) -> None:
        """Have a running point end as pruned, when it next looks."""
        self._client.set_tag(result.run_id, PRUNED, why)

    def end(self, point: Point, state: State, message: str) -> None:
        """Of a point that did not end by itself, also of one that never began."""
        runs = self._runs(f"tags.`{POINT}` = '{point.number}'")
        if not runs:
            run_id = self.begin(point)
            assert run_id is not None  # nothing has finished
            runs = [self._client.get_run(run_id)]
        for run in runs:
            end_tree(self._client, run, state, message)

    def jobs(self) -> dict[int, str]:
        """Which job of a scheduler carries out which point: ``slurm:123_4``. Empty: none does."""
        names = {file.path for file in self._client.list_artifacts(self.parent)}
        if JOBS not in names:
            return {}
        place = self._client.download_artifacts(self.parent, JOBS)
        return {int(n): job for n, job in json.loads(Path(place).read_text()).items()}

    def note_jobs(self, jobs: Mapping[int, str]) -> None:
        """More of them, or later ones for the same points."""
        self._client.log_dict(self.parent, {**self.jobs(), **jobs}, JOBS)

    def _varies(self, run: Run) -> list[str]:
        """Of a point's run; a long one is fetched once, as results are asked for often."""
        run_id = run.info.run_id
        if run_id not in self._known:
            self._known[run_id] = json.loads(whole_tag(run, OVERRIDES, self._client))
        return self._known[run_id]

    def _runs(self, where: str) -> list[Run]:
        below = f"tags.`{PARENT}` = '{self.parent}'"
        wanted = f"{below} AND {where}" if where else below
        found = search(self._client, self.experiment, wanted)
        return [run for run in found if POINT in run.data.tags]


def result_of(run: Run, varies: Sequence[str]) -> PointResult:
    tags, info = run.data.tags, run.info
    state = STATES[info.status]
    if state is State.killed and PRUNED in tags:
        state = State.pruned
    typed = (override.partition("=") for override in varies)
    return PointResult(
        number=int(tags[POINT]),
        overrides={key: value for key, _, value in typed},
        run_id=info.run_id,
        state=state,
        figures={name: value for name, value in run.data.metrics.items() if "/" not in name},
        seconds=(info.end_time - info.start_time) / 1000 if info.end_time else None,
        message=tags.get(PRUNED) if state is State.pruned else tags.get(ERROR),
        models=tuple(tags.get(MODELS, "").split()),
        attempts=attempts_of(run),
        began=info.start_time,
        reported=frozenset(name for name in run.data.metrics if name.startswith(SO_FAR)),
    )


def attempts_of(run: Run) -> int:
    return int(run.data.tags.get(ATTEMPTS, "1"))


def end_tree(client: MlflowClient, run: Run, state: State, message: str) -> None:
    """End the run and all below it that have not ended, KILLED or FAILED, with the reason."""
    for child in search(client, run.info.experiment_id, f"tags.`{PARENT}` = '{run.info.run_id}'"):
        end_tree(client, child, state, message)
    terminated = RunStatus.is_terminated(RunStatus.from_string(run.info.status))
    if run.info.status != "FINISHED" and ERROR not in run.data.tags:
        log_error(message, run.info.run_id, client)
    if not terminated:
        client.set_terminated(run.info.run_id, "KILLED" if state is State.killed else "FAILED")


def search(client: MlflowClient, experiment: str, where: str) -> list[Run]:
    """All pages."""
    return list(_pages(client, experiment, where))


def _pages(client: MlflowClient, experiment: str, where: str) -> Iterator[Run]:
    token: str | None = None
    for _ in count():
        page = client.search_runs(
            [experiment], where, ViewType.ACTIVE_ONLY, max_results=PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return
