"""The Ray cluster that a job runs on: one that exists, or one of this machine and this job."""

import logging
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import slmflow
from slmflow.config.prediction import Engine
from slmflow.console import prose
from slmflow.prediction.engines.remote import handlers_kept
from slmflow.prediction.errors import PredictionError

HOST_AND_PORT = re.compile(r"(ray://)?(?P<host>[^:/]+):(?P<port>\d+)")
CONNECT_SECONDS = 10.0
OBJECT_STORE = 100 * 1024 * 1024  # bytes; only jobs and their records pass through it


@contextmanager
def connected(settings: Engine) -> Iterator[None]:
    """Its actors end when this is left, and a cluster that was started here ends with them.

    Raises ``PredictionError`` where there is no cluster, or it takes no one in.
    """
    address = address_of(settings)
    if address is not None:
        _check_reachable(address)
        with _initialised({"address": address}, address):
            yield
        return
    with tempfile.TemporaryDirectory(prefix="slmflow-ray-") as folder, _own_environment(folder):
        started = {
            "address": "local",
            "num_cpus": settings.workers * settings.cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
            "_temp_dir": folder,
        }
        with _initialised(started, "this machine"):
            yield


def address_of(settings: Engine) -> str | None:
    """Of a cluster that exists; None where one is to be started, which Ray calls ``local``."""
    # As Ray has it: what `ray job submit` and `ray start` tell by this variable.
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address


def tell_if_nobody_works(settings: Engine) -> None:
    import ray

    cpus = [f"{node['Resources'].get('CPU', 0):g}" for node in ray.nodes() if node["Alive"]]
    prose(
        f"No actor has its place yet: {settings.workers} were asked for, of {settings.cpus} CPUs "
        f"each (engine.workers, engine.cpus). The cluster's nodes have {', '.join(cpus)} CPUs; "
        "they may wait for others' work to end."
    )


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes, and print every attempt."""
    found = HOST_AND_PORT.fullmatch(address)
    if found is None:  # auto, or a form that Ray refuses
        return
    try:
        socket.create_connection((found["host"], int(found["port"])), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise PredictionError(
            f"engine.address={address} cannot be reached ({error}); give the address that "
            "`ray start --head` printed, or auto on a node of the cluster"
        ) from None


@contextmanager
def _initialised(arguments: Mapping[str, Any], where: str) -> Iterator[None]:
    import ray

    # The nodes have not this package; they unpack it where their workers find it.
    code = {"py_modules": [str(Path(slmflow.__file__).parent)], "excludes": ["**/__pycache__"]}
    try:
        with handlers_kept():
            ray.init(
                **arguments, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise PredictionError(
            f"Ray on {where} cannot be used: {error}\n"
            "is the cluster running, engine.address right, and RAY_AUTH_TOKEN_PATH its token?"
        ) from None
    try:
        yield
    finally:
        ray.shutdown(wait_for_processes=True)


@contextmanager
def _own_environment(folder: str) -> Iterator[None]:
    """A cluster of this machine listens on its network: only who has the token may send it code."""
    token = Path(folder, "token")
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    chosen = {"RAY_USAGE_STATS_ENABLED": "0"}
    if "RAY_AUTH_MODE" not in os.environ:
        chosen |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    kept = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
