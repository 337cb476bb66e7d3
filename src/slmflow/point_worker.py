"""The door for the points of a sweep: runs entry points one after another, as ``cli`` runs one.

Standard input: a point a line, ``{"entry_point", "overrides", "run_id", "experiment_id"}``, and
``"config"``, the name of the one to compose, or ``"recorded"``, the order of a rerun.
Standard output: when it has ended, ``{"exit_code", "words", "memory"}``. What the point prints is
an artifact of its run. The process ends with its input.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import Any

import psutil
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from slmflow import cli
from slmflow.checkout import PROJECT_ROOT
from slmflow.config.load import without_hydra
from slmflow.config.store import register
from slmflow.errors import INTERRUPTED
from slmflow.interrupts import never_lost
from slmflow.redacted_output import redact_output
from slmflow.redaction import redacted, remember_overrides
from slmflow.tracking.follow import FOLLOWED, Pruned

OUTPUT = "output.txt"
SAME = "surrogateescape"  # bytes that are no text stay what they are


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _interrupt)
    register()
    cli.silence_libraries()
    redact_output()
    never_lost()
    orders: Queue[dict[str, Any]] = Queue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    from slmflow import workflows  # noqa: F401  the long import, while nothing is asked yet

    with suppress(KeyboardInterrupt):
        while True:
            exit_code, words = _carry_out(orders.get())
            memory = psutil.Process().memory_info().rss
            told = {"exit_code": exit_code, "words": words, "memory": memory}
            out.write(json.dumps(told) + "\n")


def _read(orders: "Queue[dict[str, Any]]") -> None:
    """The end of the input is the end of whoever asked: then nobody waits for the point."""
    for line in sys.stdin:
        orders.put(json.loads(line))
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _carry_out(order: dict[str, Any]) -> tuple[int, str]:
    from mlflow import MlflowClient

    os.environ["MLFLOW_RUN_ID"] = order["run_id"]  # the workflow joins it
    os.environ["MLFLOW_EXPERIMENT_ID"] = order["experiment_id"]
    if order["followed"]:
        os.environ[FOLLOWED] = order["run_id"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / OUTPUT
        with _printing_to(log):
            exit_code, words = _run(order)
            if words:
                print(f"error: {words}", file=sys.stderr)
        with suppress(Exception):  # the run itself has ended, and says how
            log.write_text(redacted(log.read_text("utf-8", SAME)), "utf-8", SAME)
            MlflowClient().log_artifact(order["run_id"], str(log))
    if exit_code == INTERRUPTED:  # why, whoever interrupts it says
        _end(order["run_id"], "KILLED", "")
        raise SystemExit(exit_code)
    _end(order["run_id"], "FAILED" if exit_code else "FINISHED", words)
    return exit_code, words


def _run(order: dict[str, Any]) -> tuple[int, str]:
    remember_overrides(order["overrides"])
    try:
        if "recorded" in order:
            _repeat(order["recorded"])
            return 0, ""
        with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
            config = compose(order["config"], order["overrides"], return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            cli.run_workflow(order["entry_point"], without_hydra(config), point=True)
    except Pruned as why:
        print(f"pruned: {why}")
        return 0, ""
    except KeyboardInterrupt:
        return INTERRUPTED, ""
    except Exception as error:
        message = cli.message_of(error)
        if message is None:
            print(redacted(traceback.format_exc()), file=sys.stderr)
            message = redacted(f"{type(error).__name__}: {error}")
        return getattr(error, "exit_code", 1), message
    return 0, ""


def _repeat(recorded: dict[str, Any]) -> None:
    from slmflow import workflows
    from slmflow.replay.pins import Order

    workflows.repeat(Order(**recorded))


def _end(run_id: str, state: str, words: str) -> None:
    """A point that ended before its workflow joined the run, as with values that do not go
    together."""
    from mlflow import MlflowClient
    from mlflow.entities import RunStatus

    from slmflow.tracking.parameters import log_error

    client = MlflowClient()
    status = client.get_run(run_id).info.status
    if not RunStatus.is_terminated(RunStatus.from_string(status)):
        if words:
            log_error(words, run_id)
        client.set_terminated(run_id, state)


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Of this process and of all that it starts."""
    kept = os.dup(1), os.dup(2)
    with log.open("wb") as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


if __name__ == "__main__":
    main()
