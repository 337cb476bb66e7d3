"""The steps of the entry point serve: load the model, listen, say how to ask it."""

import asyncio
import gc
import ipaddress
import os
import signal
import socket
import time
from dataclasses import asdict
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model

from slmflow import console
from slmflow.answering.ask import model_environment
from slmflow.answering.model_files import refuse_pickles
from slmflow.config.schema import ServeConfig
from slmflow.next_commands import ask_commands
from slmflow.redaction import redacted
from slmflow.serving.app import create_app
from slmflow.serving.engine import Engine, Loaded
from slmflow.serving.metrics import Metrics
from slmflow.serving.openai_api import Identity
from slmflow.serving.process import Order
from slmflow.serving.server import API_KEY, Server, access, address_of, listen
from slmflow.serving.tracing import NoTracer, Tracer
from slmflow.tracking.registry import find_version


def start(uri: str, config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM, within the active run. Raises ``ServeError``, and ``AskError``
    for a model that is none or holds pickles."""
    bound = listen(config.serve)
    version = find_version(uri)
    if version is not None:  # the same one after a restart, wherever an alias points by then
        uri = f"models:/{version.name}/{version.version}"
    console.heading(f"serve {uri}")
    mlflow.set_tag("served_model", redacted(uri))
    refuse_pickles(uri)
    listening: list[str] = []
    try:
        asyncio.run(_serve(uri, version, config, bound, listening))
    except KeyboardInterrupt:  # how a server ends, once it is one
        if not listening:
            raise


async def _serve(
    uri: str,
    version: ModelVersion | None,
    config: ServeConfig,
    bound: socket.socket,
    listening: list[str],
) -> None:
    settings = config.serve
    engine = Engine(_order(uri, version, config), settings.queue, settings.timeout)
    try:
        with console.step("load it in a process of its own"):
            loaded = await engine.start()
        metadata = Model.load(uri)
        app = create_app(
            engine,
            _identity(uri, version, loaded),
            access(settings, bound),
            metadata,
            Metrics(),
            _tracer(config, uri, metadata),
        )

        def said() -> None:
            listening.append(address_of(bound))
            _say_listening(bound, loaded, config)

        server = Server(app, settings, said)
        _do_not_hang_on_tracking()
        # The server hears it until it has ended; from then on the run ends, and nothing else does:
        # `mlflow run` sends one behind its own Ctrl-C.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        gc.freeze()  # all of MLflow is there to stay: collections need not go over it
        await server.serve(sockets=[bound])
    finally:
        await engine.stop()


def _order(uri: str, version: ModelVersion | None, config: ServeConfig) -> Order:
    changes: dict[str, Any] = {}
    if version is not None:  # it may have been registered again under another name
        changes["model"] = version.name
    if config.search is not None:
        changes |= asdict(config.search)
    if config.hardware.threads != "auto":
        changes["threads"] = config.hardware.threads
    limits = {"new_tokens": config.serve.max_new_tokens, "choices": config.serve.max_choices}
    environment = model_environment()
    environment.pop(API_KEY, None)
    return Order(uri, changes, limits, environment)


def _identity(uri: str, version: ModelVersion | None, loaded: Loaded) -> Identity:
    about: dict[str, Any] = {"task": loaded.task, "context_length": loaded.context_length}
    if version is None:
        return Identity(loaded.name, uri, int(time.time()), frozenset({loaded.name, uri}), about)
    name = version.name
    names = {name, uri, f"{name}/{version.version}"}
    for alias in version.aliases:
        names |= {f"{name}@{alias}", f"models:/{name}@{alias}"}
    about = {"version": str(version.version), **about}
    created = int(version.creation_timestamp) // 1000
    return Identity(name, uri, created, frozenset(names), about)


def _tracer(config: ServeConfig, uri: str, metadata: Model) -> Tracer | NoTracer:
    if not config.trace:
        return NoTracer()
    run = mlflow.active_run()
    assert run is not None
    about = {"mlflow.sourceRun": run.info.run_id, "slmflow.served_model": redacted(uri)}
    if metadata.model_id is not None:
        about["mlflow.modelId"] = metadata.model_id
    return Tracer(config.trace_rate, run.info.experiment_id, about)


def _do_not_hang_on_tracking() -> None:
    """From here on the tracking server gets traces and the run's end. Where it is away, MLflow
    would try each of its calls for ten minutes, and Ctrl-C would seem not to work."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def _say_listening(bound: socket.socket, loaded: Loaded, config: ServeConfig) -> None:
    address = address_of(bound)
    console.note(f"listening on {address}; Ctrl-C ends it when what runs is answered")
    host = bound.getsockname()[0]
    if not ipaddress.ip_address(host).is_loopback and not os.environ.get(API_KEY):
        console.note(f"whoever reaches {host} can ask it; set {API_KEY} to want a key")
    key = API_KEY if os.environ.get(API_KEY) else None
    commands = ask_commands(address, loaded.name, loaded.chats, config.model.probe.question, key)
    console.commands("ask it, in another terminal", commands)
