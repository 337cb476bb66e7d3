"""Packaging runs whose tracking server goes away: at the start, in an upload, in registering."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion

from tests.conftest import TIMEOUT, Workplace, make_workplace
from tests.outage import Proxy, proxy
from tests.tracking_server import tracking_server

CREATE_RUN = r"POST .*/mlflow/runs/create "
UPLOAD = r"PUT .*/artifacts/.*model\.onnx\.data "
MIDDLE = 400_000  # bytes of a file of 1.7 MB
REGISTER = r"POST .*/model-versions/create "
PLACES = ("upload", "start", "registration")


@dataclass
class Away:
    """A packaging run through a proxy of its own, in an experiment of its own."""

    place: str
    proxy: Proxy
    workplace: Workplace
    client: MlflowClient  # past the proxy
    seconds: float = 0.0
    ended: float = 0.0  # time.monotonic()
    result: "CompletedProcess[str]" = field(init=False)

    @property
    def experiment(self) -> str:
        return str(self.client.get_experiment_by_name(self.place).experiment_id)

    @property
    def runs(self) -> list[Run]:
        return list(self.client.search_runs([self.experiment]))

    @property
    def models(self) -> list[LoggedModel]:
        """Those that a run of this place logged."""
        own = {run.info.run_id for run in self.runs}
        found = self.client.search_logged_models([self.experiment])
        return [model for model in found if model.source_run_id in own]

    @property
    def versions(self) -> list[ModelVersion]:
        own = {f"models:/{model.model_id}" for model in self.models}
        found = self.client.search_model_versions()
        return [version for version in found if version.source in own]

    def package(self) -> None:
        """By ``mlflow run`` where it matters that it opens the run; else by the script alone."""
        opened = self.place in ("start", "answers")
        run = self.workplace.mlflow_run if opened else self.workplace.script
        self.do(run, "custom_onnx")

    def do(self, run: "Callable[..., CompletedProcess[str]]", *words: str) -> None:
        started = time.monotonic()
        self.result = run(*words)
        self.ended = time.monotonic()
        self.seconds = self.ended - started


@contextmanager
def server_behind(folder: Path, cache: Path) -> Iterator[tuple[Workplace, str]]:
    """A real tracking server with a store of its own: who uses it, and its address."""
    workplace = make_workplace(folder, cache)
    (folder / "server").mkdir()
    with tracking_server(workplace, folder / "server") as address:
        yield workplace, address


@contextmanager
def through(place: str, workplace: Workplace, server: str, **environment: str) -> Iterator[Away]:
    client = MlflowClient(server)
    client.create_experiment(place)
    with proxy(server) as between:
        names = {"MLFLOW_TRACKING_URI": between.address, "MLFLOW_EXPERIMENT_NAME": place}
        behind = Workplace(workplace.folder, {**workplace.environment, **names, **environment})
        yield Away(place, between, behind, client)


def cut(away: Away, seconds: float) -> None:
    """The server goes away once, where the run's ``place`` says."""
    if away.place == "start":
        away.proxy.go_away_at(CREATE_RUN, seconds)
    elif away.place == "upload":
        away.proxy.go_away_at(UPLOAD, seconds, after=MIDDLE)
    elif away.place == "registration":  # the version is made, and nobody hears of it
        away.proxy.go_away_at(REGISTER, seconds, answered=True)


def side_by_side(first: Away, *others: Away) -> None:
    """The first uploads the weights, which the others would find there: they wait for its
    outage."""
    threads = [threading.Thread(target=away.package) for away in (first, *others)]
    threads[0].start()
    until = time.monotonic() + TIMEOUT
    while not first.proxy.outages and threads[0].is_alive() and time.monotonic() < until:
        time.sleep(0.05)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
