"""Whether the servers that the environment names answer at all: asked by ``./run``, before
`mlflow run` opens the run there.

MLflow itself would ask in vain for minutes: a server without a word, a database with SQLAlchemy's
whole message each time. Any answer counts, and of a database that it lets in: what it says to a
user, a password or a certificate is told by who needs it.
"""

import os
import socket
import threading
import time
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from slmflow.errors import ServerAway
from slmflow.redaction import redacted
from slmflow.tracking.pauses import EVERY, away, back, mlflows_pauses
from slmflow.tracking.reason import reason

DATABASES = {"postgresql": 5432, "mysql": 3306}  # and their usual ports; SQL Server's may be a DSN
ELSEWHERE = {"host", "hostaddr", "service", "unix_socket"}  # options that mean another place
VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
RETRIES = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", 7)  # and MLflow's own defaults
FACTOR = ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", 2)
TELLS_AFTER = 1.0  # seconds; with what comes before, a person has waited for less than two
PAUSE = 0.5  # seconds, doubled up to EVERY
ANSWER = (EVERY, 30)  # seconds to be let in, and to get an answer


def named_servers() -> dict[str, str]:
    """Address to variable; without stores that are files, or reached by a file."""
    named: dict[str, str] = {}
    for variable in VARIABLES:
        uri = os.environ.get(variable, "")
        if speaks_http(uri) or _database(uri) is not None:
            named.setdefault(uri, variable)
    return named


def speaks_http(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def demand_answers(servers: Mapping[str, str]) -> None:
    """Raises ``ServerAway`` where one is silent for as long as MLflow would ask."""
    for uri, variable in servers.items():
        _demand_answer(uri, variable)


def patience() -> float:
    """In seconds."""
    return mlflows_pauses(_number(*RETRIES), _number(*FACTOR))


def _number(variable: str, default: int) -> int:
    try:
        return int(os.environ.get(variable, default))
    except ValueError:  # MLflow tells what is wrong with it
        return default


def _demand_answer(uri: str, variable: str) -> None:
    seconds, began, told = patience(), time.monotonic(), threading.Event()

    def tell() -> None:
        from slmflow import console  # late: most servers answer

        told.set()
        console.note(away(_where(uri), "does not answer", seconds))

    # Beside it: looking up a name may take longer than a person should sit before a silent screen.
    telling = threading.Timer(TELLS_AFTER, tell)
    telling.daemon = True
    if seconds:
        telling.start()
    try:
        silent = _until_it_answers(uri, began + seconds)
    finally:
        telling.cancel()
    if silent is not None:
        raise ServerAway(_words(uri, variable, silent, time.monotonic() - began))
    if told.is_set():
        from slmflow import console

        console.note(back(time.monotonic() - began))


def _until_it_answers(uri: str, until: float) -> str | None:
    """None; or, where it has not by then, why not."""
    pause = PAUSE
    while (silent := _silent(uri)) is not None and (left := until - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        pause = min(2 * pause, EVERY)
    return silent


def _silent(uri: str) -> str | None:
    """Why it does not answer; None where it does, or where MLflow has to say more about it."""
    database = _database(uri)
    return _silent_server(uri) if database is None else _silent_database(uri, database)


def _database(uri: str) -> tuple[str, int] | None:
    """Host and port of one that listens there; None for what is none, or cannot be told."""
    try:
        parts = urlsplit(uri)
        usual = DATABASES.get(parts.scheme.partition("+")[0])
        if usual is None or parts.hostname is None or ELSEWHERE & parse_qs(parts.query).keys():
            return None
        return parts.hostname, parts.port or usual
    except ValueError:  # several hosts, or no address
        return None


def _silent_database(uri: str, place: tuple[str, int]) -> str | None:
    try:
        socket.create_connection(place, timeout=EVERY).close()
    except OSError as error:
        return reason(error) if _has_driver(uri) else None
    return None


def _has_driver(uri: str) -> bool:
    import sqlalchemy  # late: most databases answer

    try:
        sqlalchemy.make_url(uri).get_dialect().import_dbapi()
    except (ImportError, sqlalchemy.exc.SQLAlchemyError):
        return False
    return True


def _silent_server(uri: str) -> str | None:
    import requests  # late: MLflow imports it anyway, but only runs with a server need it so soon

    try:
        asked = f"{uri.rstrip('/')}/health"
        requests.get(asked, timeout=ANSWER, allow_redirects=False, stream=True).close()
    except requests.exceptions.SSLError:
        return None
    except requests.Timeout:
        return "no answer in time"
    except requests.ConnectionError as error:
        return reason(error)
    except requests.RequestException:  # an address that cannot be one
        return None
    return None


def _where(uri: str) -> str:
    """Without user and password."""
    return urlsplit(uri).netloc.rpartition("@")[2]


def _words(uri: str, variable: str, silent: str, seconds: float) -> str:
    asked = f", asked for {seconds:.0f} s" if seconds >= 1 else ""
    return (
        f"{variable}: {redacted(uri)} does not answer ({silent}{asked}), so no run was opened and "
        f"nothing was started. Start the server, or export {variable}=... to another, and repeat "
        "the command; ./run doctor says more"
    )
