"""Parts on a Ray cluster: actors that each keep a process with the model."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from slmflow.config.prediction import Engine
from slmflow.prediction.engines.ray_cluster import connected, tell_if_nobody_works
from slmflow.prediction.engines.remote import (
    ATTEMPTS,
    PATIENCE,
    Outcome,
    check_installed,
    on_cores,
    outcome,
    result,
)
from slmflow.prediction.errors import PredictionError
from slmflow.prediction.model import ModelSpec, RestartingModel
from slmflow.prediction.part import PartDone, PartJob


def check(settings: Engine) -> None:
    """Raise ``ConfigError`` where this engine cannot work: before anything is loaded."""
    check_installed("ray", "ray", "Ray")


def run(
    jobs: Iterable[PartJob],
    spec: ModelSpec,
    settings: Engine,
    answered: Callable[[int], None] = lambda count: None,
) -> Generator[PartDone, None, None]:
    """The parts as they are done, in no order. Closing it ends the actors and their models.

    ``answered`` is told of a part's rows when it is done. An actor that dies is replaced, and its
    part repeated. Raises ``AskError`` where the model does not load or gives up,
    ``PredictionError`` where Ray does.
    """
    check(settings)
    with connected(settings):
        crew = _Crew(on_cores(spec, settings.cpus), settings)
        try:
            for done in crew.answer(iter(jobs)):
                answered(done.rows)
                yield done
        finally:
            crew.dismiss()


class Answerer:
    """The actor. Its model loads with the first part that it is given."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._model: RestartingModel | None = None

    def ready(self) -> None:
        """Answered once the actor has its place in the cluster."""

    def answer(self, job: PartJob) -> Outcome:
        return outcome(job, self._loaded)

    def _loaded(self) -> RestartingModel:
        if self._model is None:
            self._model = RestartingModel(self._spec).__enter__()
        return self._model


class _Crew:
    """The actors, and what each of them is at. A part goes to one that has its place, so that
    actors for which the cluster has no room keep nothing waiting."""

    def __init__(self, spec: ModelSpec, settings: Engine) -> None:
        import ray

        self._spec = spec
        self._settings = settings
        self._actor = ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus, max_restarts=0)(
            Answerer
        )
        self._at: dict[Any, tuple[Any, PartJob | None]] = {}  # by what is waited for
        self._again: deque[PartJob] = deque()
        self._attempts: Counter[int | None] = Counter()
        for _ in range(settings.workers):
            self._hire()

    def answer(self, jobs: Iterator[PartJob]) -> Iterator[PartDone]:
        import ray

        while True:
            ref, (actor, job) = self._next_to_end()
            try:
                ended = ray.get(ref)
            except ray.exceptions.RayTaskError as error:  # the actor is well
                self._repeat(job, error)
            except ray.exceptions.RayError as error:
                ray.kill(actor)
                self._repeat(job, error)
                self._hire()
                continue
            else:
                if job is not None:
                    yield result(ended)
            following = self._again.popleft() if self._again else next(jobs, None)
            if following is not None:
                self._at[actor.answer.remote(following)] = actor, following
                continue
            ray.kill(actor)
            if all(job is None for _, job in self._at.values()):
                return

    def dismiss(self) -> None:
        import ray

        for actor, _ in self._at.values():
            ray.kill(actor)

    def _hire(self) -> None:
        actor = self._actor.remote(self._spec)
        self._at[actor.ready.remote()] = actor, None

    def _next_to_end(self) -> tuple[Any, tuple[Any, PartJob | None]]:
        import ray

        ended, _ = ray.wait(list(self._at), timeout=PATIENCE)
        if not ended:
            if all(job is None for _, job in self._at.values()):
                tell_if_nobody_works(self._settings)
            ended, _ = ray.wait(list(self._at))
        return ended[0], self._at.pop(ended[0])

    def _repeat(self, job: PartJob | None, error: Exception) -> None:
        """Raises ``PredictionError`` where that was done often enough."""
        number = None if job is None else job.number
        self._attempts[number] += 1
        if self._attempts[number] >= ATTEMPTS:
            what = "an actor did not start" if job is None else f"part {job.number} failed"
            raise PredictionError(
                f"Ray: {what} {ATTEMPTS} times. The last time: {_reason(error)}"
            ) from None
        if job is not None:
            self._again.append(job)


def _reason(error: Exception) -> str:
    """Without the stack trace that Ray makes the message of."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"
    return "\n".join(str(error).strip().splitlines()[:8])
