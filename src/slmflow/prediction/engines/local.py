"""On this machine: one process with the model for each worker, each taking the next part."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from queue import SimpleQueue

from slmflow.config.prediction import Engine
from slmflow.prediction.model import ModelSpec, RestartingModel
from slmflow.prediction.part import PartDone, PartJob, answer_part
from slmflow.served.cores import available_cores

AHEAD = 2  # parts a worker, so that none waits for the next one to be handed out


def check(settings: Engine) -> None:
    """It needs nothing that is not there."""


def run(
    jobs: Iterable[PartJob],
    spec: ModelSpec,
    settings: Engine,
    answered: Callable[[int], None] = lambda count: None,
) -> Generator[PartDone, None, None]:
    """The parts as they are done, in no order. Closing it ends the models' processes.

    Raises ``AskError`` where the model does not load or gives up.
    """
    workers = settings.workers
    spec = replace(spec, model_config=_shared(spec, workers))
    with ThreadPoolExecutor(workers) as pool, ExitStack() as stack:
        # Of the two contexts this one ends first: that frees the threads of the other.
        free: SimpleQueue[RestartingModel] = SimpleQueue()
        for _ in range(workers):
            free.put(stack.enter_context(RestartingModel(spec)))
        rest = iter(jobs)
        begun: set[Future[PartDone]] = set()
        stack.callback(lambda: [future.cancel() for future in begun])
        while True:
            for job in islice(rest, AHEAD * workers - len(begun)):
                begun.add(pool.submit(_answer, job, free, answered))
            if not begun:
                return
            ended, begun = wait(begun, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ended)


def _answer(
    job: PartJob, free: "SimpleQueue[RestartingModel]", answered: Callable[[int], None]
) -> PartDone:
    model = free.get()
    try:
        return answer_part(job, model, answered)
    finally:
        free.put(model)


def _shared(spec: ModelSpec, workers: int) -> dict[str, object]:
    """The model's settings, with the cores divided among the workers where it would take all."""
    settings = dict(spec.model_config)
    if workers > 1 and settings.get("threads") == "auto":
        settings["threads"] = max(1, available_cores() // workers)
    return settings
