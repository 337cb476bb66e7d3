"""The door of ``./run NAME -P ...``: `mlflow run` of this project, with the true exit code.

In one process, so that Ctrl-C and SIGTERM reach the one that waits for the entry point. MLflow is
imported last: that takes seconds, and what can be told before is told at once.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

from slmflow.errors import INTERRUPTED, ServerAway
from slmflow.interrupts import never_lost
from slmflow.redacted_output import redact_output
from slmflow.redaction import redacted, refusal, typed_secrets
from slmflow.tracking.experiment import experiment_id, experiment_name
from slmflow.tracking.first_answer import demand_answers, named_servers, speaks_http
from slmflow.tracking.reason import reason

DRIVERS = ("psycopg", "psycopg2", "MySQLdb", "pymysql", "mysql", "pyodbc", "pymssql")
"""Of SQLAlchemy's databases that MLflow knows; which one it asks for follows from the address."""
Processes = list["subprocess.Popen[bytes]"]


def main(arguments: Sequence[str]) -> int:
    """The exit code: the entry point's own (``cli.run_entry_point``), or 128 and the signal that
    ended it; where none began, 130 on an interrupt, else 1."""
    if not arguments:
        return _refuse("no entry point was named; ./run alone lists them")
    name, *typed = arguments
    secrets = typed_secrets(typed)
    if secrets:
        return _refuse(refusal(secrets))
    redact_output()
    never_lost()
    signal.signal(signal.SIGTERM, _interrupt)  # or the entry point would go on without us
    try:
        servers = named_servers() if "--help" not in typed else {}
        demand_answers(servers)
        return _mlflow_run(
            ["run", ".", "-e", name, *_manner(typed), *typed], any(map(speaks_http, servers))
        )
    except ServerAway as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _refuse("interrupted", INTERRUPTED)


def _manner(typed: Sequence[str]) -> list[str]:
    """Of the run; what was typed comes behind it, and counts."""
    manner = ["--env-manager", "local"]
    if experiment_id() is not None or any(one.startswith("--experiment-id") for one in typed):
        return manner  # MLflow takes either its number or its name
    return [*manner, "--experiment-name", experiment_name()]


def _mlflow_run(arguments: list[str], with_server: bool) -> int:
    import click
    from mlflow.cli import cli

    begun = _remembered()
    _leave_ended_runs()
    if with_server:
        _be_patient()
    try:
        cli.main(arguments, prog_name="mlflow", standalone_mode=False)
    except SystemExit:  # how it says that the entry point failed
        return _code_of(begun)
    except click.ClickException as wrong:
        wrong.show()
        return 1
    except click.Abort:  # what click makes of a KeyboardInterrupt
        if not begun:
            raise KeyboardInterrupt from None
        return _code_of(begun, interrupted=True)
    except Exception as error:
        return _code_without_mlflow(begun, error)
    return 0


def _remembered() -> Processes:
    """The processes that MLflow will have begun: of their exit codes it tells only 0 or not."""
    from mlflow.projects.backend import local

    begun: Processes = []

    class Remembered(local.LocalSubmittedRun):  # type: ignore[misc]  # MLflow has no types
        def __init__(self, run_id: str, process: "subprocess.Popen[bytes]") -> None:
            super().__init__(run_id, process)
            begun.append(process)

    local.LocalSubmittedRun = Remembered
    return begun


def _leave_ended_runs() -> None:
    """MLflow calls a run FAILED whose entry point ended with another code than 0, also where it has
    ended by itself: FINISHED, and the gate refused; or KILLED."""
    from mlflow import MlflowClient, projects
    from mlflow.entities import Run, RunStatus

    def end(run: Run | None, state: str) -> None:
        if run is None:
            return
        client = MlflowClient()
        now = client.get_run(run.info.run_id).info.status
        if not RunStatus.is_terminated(RunStatus.from_string(now)):
            client.set_terminated(run.info.run_id, state)

    projects._maybe_set_run_terminated = end


def _be_patient() -> None:
    """With a server that leaves while MLflow opens the run, or looks after it."""
    from mlflow.projects.backend import local

    from slmflow.tracking import ending, patience, rest

    rest.install()

    class Patient(local.LocalSubmittedRun):  # type: ignore[misc]  # MLflow has no types
        def wait(self) -> bool:
            succeeded: bool = super().wait()
            if ending.is_kept(self.run_id):  # it has waited for the server, and told so
                patience.give_up()
            return succeeded

    local.LocalSubmittedRun = Patient


def _code_of(begun: Processes, interrupted: bool = False) -> int:
    own = begun[-1].returncode if begun else 1
    if own is not None and own >= 0:
        return own
    if own is None or interrupted:  # MLflow may end by SIGTERM what is just ending by itself
        return INTERRUPTED
    return 128 - own


def _code_without_mlflow(begun: Processes, error: Exception) -> int:
    """MLflow itself failed: in opening the run, or in looking after it. A bug is raised."""
    told = _told(error)
    if told is None:
        raise error
    if not begun:
        return _refuse(told)
    begun[-1].wait()
    print(f"mlflow run lost sight of the run ({redacted(reason(error))})", file=sys.stderr)
    return _code_of(begun)


def _told(error: Exception) -> str | None:
    import mlflow

    from slmflow.cli import message_of
    from slmflow.tracking.patience import unanswered
    from slmflow.tracking.reason import refused
    from slmflow.tracking.run import unreachable

    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in DRIVERS:
        return (
            f"the tracking store {redacted(mlflow.get_tracking_uri())} needs the Python package "
            f"{error.name}, which is not installed here; ./run doctor says what to type"
        )
    of_database = type(error).__module__.startswith("sqlalchemy.")
    if of_database or unanswered(error) or refused(error) is not None:
        return unreachable(error)
    return message_of(error)


def _refuse(message: str, code: int = 1) -> int:
    print(f"error: {redacted(message)}", file=sys.stderr)
    return code


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
