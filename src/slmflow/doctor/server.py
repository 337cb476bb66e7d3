"""A tracking server over HTTP, asked as MLflow's client asks it."""

import configparser
import os
import ssl
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from slmflow.doctor.finding import Finding, failure, ok, warning
from slmflow.doctor.stores import Experiment, tracking_uri
from slmflow.redaction import redacted
from slmflow.tracking.experiment import experiment_id, experiment_name

if TYPE_CHECKING:
    import httpx

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
NAME = "slmflow-doctor"  # of whatever is written: should it stay, the next doctor takes it away
QUICK = 0.4  # of the time for an answer: who is slower is not written to, lest it stay there
ABSENT, PRESENT = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"
CREDENTIALS = "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=..."
REACH = "start it, or export MLFLOW_TRACKING_URI=... to another"
PATIENCE = "doctor.seconds=30   # if it is slow; else start it, or export MLFLOW_TRACKING_URI=..."
Answer = TypeVar("Answer")


class Refusal(Exception):
    """Why the server will not do it, and what mends that."""

    def __init__(self, found: str, mend: str) -> None:
        super().__init__(found)
        self.found, self.mend = found, mend


def check_tracking(check: str, uri: str, seconds: float) -> Finding:
    """Reached, let in, and allowed to write: a tag of the experiment is set and removed."""
    place = redacted(uri)
    try:
        with client(uri, seconds) as server:
            experiment, took = timed(lambda: ask_experiment(server))
            if experiment.deleted:
                found = f"{place}: the experiment {experiment.name} is deleted"
                return failure(check, found, f"mlflow experiments restore -x {experiment.id}")
            if experiment.id is None:
                return ok(check, f"{place}: the experiment {experiment.name} is new")
            if took > seconds * QUICK:
                return _slow(check, place, took)
            tag = {"experiment_id": experiment.id, "key": NAME}
            send(server, "POST", f"{API}/experiments/set-experiment-tag", json=tag | {"value": "x"})
            gone = f"{API}/experiments/delete-experiment-tag"
            send(server, "POST", gone, json=tag, fine=(ABSENT,))
    except Refusal as refusal:
        return failure(check, refusal.found, refusal.mend)
    return ok(check, f"{place}: the experiment {experiment.name} was written to")


def check_registry(check: str, uri: str, seconds: float) -> Finding:
    """A registered model without versions is made and deleted."""
    place, model = redacted(uri), {"name": NAME}
    try:
        with client(uri, seconds) as server:
            path, query = f"{API}/registered-models/search", {"max_results": 1}
            _, took = timed(lambda: send(server, "GET", path, params=query))
            if took > seconds * QUICK:
                return _slow(check, place, took)
            create = f"{API}/registered-models/create"
            send(server, "POST", create, json=model, fine=(PRESENT,))
            delete = f"{API}/registered-models/delete"
            send(server, "DELETE", delete, json=model, fine=(ABSENT,))
    except Refusal as refusal:
        return failure(check, refusal.found, refusal.mend)
    return ok(check, f"{place}: a model was registered and deleted")


def check_artifacts(check: str, location: str, seconds: float) -> Finding:
    """A file of four bytes is sent through the server and deleted."""
    path = location.partition(":")[2]
    if path.startswith("//"):
        path = "/" + path[2:].partition("/")[2]
    folder = f"{ARTIFACTS}{path.rstrip('/')}"
    try:
        with client(tracking_uri(), seconds) as server:
            query = {"path": f"{path.strip('/')}/{NAME}".lstrip("/")}
            _, took = timed(lambda: send(server, "GET", ARTIFACTS, params=query))
            if took > seconds * QUICK:
                return _slow(check, location, took)
            send(server, "PUT", f"{folder}/{NAME}", content=b"slm\n")
            send(server, "DELETE", f"{folder}/{NAME}", fine=(ABSENT,))
    except Refusal as refusal:
        return failure(check, f"through the server: {refusal.found}", refusal.mend)
    return ok(check, f"{location} through the server: a file was written and deleted")


def timed(ask: Callable[[], Answer]) -> tuple[Answer, float]:
    """What is answered, and the seconds that it took."""
    began = time.monotonic()
    return ask(), time.monotonic() - began


def _slow(check: str, place: str, took: float) -> Finding:
    found = f"{place} answers, but takes {took:.1f} s, so nothing was written to it"
    return warning(check, found, "doctor.seconds=30   # to wait for it")


def find_experiment(seconds: float) -> Experiment:
    """Raises ``Refusal``."""
    with client(tracking_uri(), seconds) as server:
        return ask_experiment(server)


def ask_experiment(server: "httpx.Client") -> Experiment:
    wanted, name = experiment_id(), experiment_name()
    if wanted is None:
        query, path = {"experiment_name": name}, f"{API}/experiments/get-by-name"
    else:
        query, path = {"experiment_id": wanted}, f"{API}/experiments/get"
    told = send(server, "GET", path, params=query, fine=() if wanted else (ABSENT,))
    if told is None:
        return Experiment(None, name, _place_of_new(server))
    about = told["experiment"]
    return Experiment(
        about["experiment_id"],
        about["name"],
        about["artifact_location"],
        deleted=about.get("lifecycle_stage") == "deleted",
    )


def _place_of_new(server: "httpx.Client") -> str:
    """Through the server where it hands artifacts on, else beside those of the first experiment."""
    try:
        send(server, "GET", ARTIFACTS, params={"path": NAME})
        return "mlflow-artifacts:/"
    except Refusal:
        first = send(server, "GET", f"{API}/experiments/get", params={"experiment_id": "0"})
        return str(first["experiment"]["artifact_location"])


def client(uri: str, seconds: float) -> "httpx.Client":
    """With what MLflow's client would show: user and password, or token; certificates."""
    import httpx

    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    user, password = _user()
    return httpx.Client(
        base_url=uri.rstrip("/"),
        auth=(user, password) if user and password else None,
        headers={"Authorization": f"Bearer {token}"} if token and not user else {},
        verify=_verified(),
        timeout=seconds,
        follow_redirects=True,
    )


def send(
    server: "httpx.Client", method: str, path: str, *, fine: Sequence[str] = (), **arguments: Any
) -> Any:
    """The JSON that is answered; None where the server refuses with one of the codes ``fine``.

    Raises ``Refusal``.
    """
    import httpx

    try:
        answer = server.request(method, path, **arguments)
    except httpx.TimeoutException:
        raise Refusal(f"{_place(server)} does not answer in time", PATIENCE) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        why = redacted(" ".join(str(error).split()) or type(error).__name__)
        raise Refusal(f"{_place(server)} does not answer ({why})", REACH) from None
    try:
        told = answer.json() if answer.content else {}
    except ValueError:
        told = None
    if answer.is_success and isinstance(told, dict):
        return told
    code = told.get("error_code") if isinstance(told, dict) else None
    if code in fine:
        return None
    raise _refusal(server, answer, code, told)


def _refusal(
    server: "httpx.Client", answer: "httpx.Response", code: str | None, told: Any
) -> Refusal:
    place, status = _place(server), answer.status_code
    said = told.get("message", "") if isinstance(told, dict) else answer.text
    lines = redacted(str(said)).strip().splitlines() or [answer.reason_phrase]
    if status == 401:
        if "Authorization" not in answer.request.headers:
            return Refusal(f"{place} asks who you are, and was not told", CREDENTIALS)
        return Refusal(f"{place} refuses this user name and password", CREDENTIALS)
    if status == 403:
        who = _user()[0] or "you"
        found = f"{place} does not let {who} write ({lines[0]})"
        return Refusal(found, f"ask its administrator for EDIT on {experiment_name()}")
    if code is None and status < 500:
        return Refusal(f"{place} is no MLflow server (it answers {status})", REACH)
    return Refusal(f"{place} answers {status}: {lines[0][:200]}", "see the server's own log")


@cache  # reading all of them takes 50 ms
def public_authorities() -> ssl.SSLContext:
    """The certificates that Python's HTTP clients trust, or those of SSL_CERT_FILE."""
    import httpx

    return httpx.create_ssl_context()


def _verified() -> ssl.SSLContext | bool:
    """As MLflow's client asks its server (mlflow/utils/rest_utils.py), and nobody else."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return False
    own = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or os.environ.get("REQUESTS_CA_BUNDLE")
    return ssl.create_default_context(cafile=own) if own else public_authorities()


def _place(server: "httpx.Client") -> str:
    return redacted(str(server.base_url)).rstrip("/")


def _user() -> tuple[str | None, str | None]:
    """From the environment, else ~/.mlflow/credentials (mlflow/utils/credentials.py)."""
    parser = configparser.ConfigParser()
    parser.read(Path.home() / ".mlflow" / "credentials")
    written = dict(parser["mlflow"]) if parser.has_section("mlflow") else {}
    user, password = (
        os.environ.get(name.upper()) or written.get(name)
        for name in ("mlflow_tracking_username", "mlflow_tracking_password")
    )
    return user, password
