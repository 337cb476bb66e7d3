"""The door between a terminal and the workflows: arguments, config, errors, exit codes."""

import errno
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from slmflow.checkout import PROJECT_ROOT
from slmflow.config.arguments import sweeps, to_overrides
from slmflow.config.explain import explain, is_config_error
from slmflow.config.load import typed
from slmflow.config.store import SCHEMAS, register
from slmflow.errors import INTERRUPTED, ConfigError, ServerAway, UserError
from slmflow.interrupts import never_lost
from slmflow.redacted_output import redact_output
from slmflow.redaction import (
    redacted,
    redacted_override,
    remember,
    remember_overrides,
)

GROUPS = (
    "model",
    "task",
    "search",
    "hardware",
    "data",
    "speed",
    "gate",
    "sweep",
    "engine",
    "format",
    "experiment",
)
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# Bytes. Of an object store MLflow holds as many parts at once as it has threads, of 100 MB each.
DOWNLOADS = {"MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE": str(16 * 1024**2)}


def run_entry_point(name: str) -> NoReturn:
    """Compose the config of that name, run the workflow of that name, exit.

    0: done; 1: an error, told in one message; 2: a gate refused; 130: interrupted. A bug keeps
    its stack trace, and ``HYDRA_FULL_ERROR=1`` shows the trace of every error.
    """
    show_traces = "HYDRA_FULL_ERROR" in os.environ
    redact_output()
    never_lost()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print errors itself and exit
    signal.signal(signal.SIGTERM, _interrupt)  # how `mlflow run` and schedulers cancel
    sys.argv[1:] = to_overrides(sys.argv[1:])
    remember_overrides(sys.argv[1:])
    swept = sweeps(sys.argv[1:])
    if swept:
        sys.argv[1:] = ["--multirun", *sys.argv[1:]]
    register()
    silence_libraries()

    failures: list[Exception] = []
    composed: list[tuple[DictConfig, dict[str, str]]] = []

    config_path = str(PROJECT_ROOT / "conf")

    @hydra.main(version_base="1.3", config_path=config_path, config_name=name)  # type: ignore[untyped-decorator]
    def job(config: DictConfig) -> None:
        composed.append((config, _choices()))  # of which Hydra knows nothing afterwards
        try:
            run_workflow(name, config)
        except Exception as error:  # kept: Hydra would print it in its own words
            failures.append(error)

    try:
        _hide_typed(sys.argv[1:])
        if swept:
            _demand_sweepable(name)
        _tell_moved_clone()
        job()
    except KeyboardInterrupt:
        _exit("interrupted", INTERRUPTED)
    except Exception as error:
        failures.append(error)
    for failure in failures:
        message = message_of(failure)
        if message is None or show_traces:
            raise failure
        print(f"error: {message}", file=sys.stderr)
        if isinstance(failure, ServerAway):
            print(f"when it answers again: {_typed_again(name)}", file=sys.stderr)
        _record_project_run(name, message, composed)
    gc.freeze()  # at exit, Python would go over all of torch once more for a second and a half
    _end(max((getattr(failure, "exit_code", 1) for failure in failures), default=0))


def _typed_again(name: str) -> str:
    from slmflow.tracking.project_source import command

    given = [override for override in _typed() if not override.endswith(("=", "=[]"))]
    return command(name, *map(redacted_override, given))


def _typed() -> tuple[str, ...]:
    return tuple(override for override in sys.argv[1:] if not override.startswith("--"))


def _demand_sweepable(name: str) -> None:
    if not any(field.name == "sweep" for field in fields(SCHEMAS[name])):
        raise ConfigError(
            f"{name} cannot be swept: give every key one value, and quotes to a text with a "
            "comma: KEY=\"'a, b'\""
        )


def run_workflow(name: str, config: DictConfig, point: bool = False) -> None:
    """Of an entry point; ``point``: as a point of a sweep."""
    checked = typed(config)
    values = _values(config)
    if not point and getattr(checked, "sweep", None) is not None and checked.sweep.over:
        raise ConfigError(
            f"this config has points to sweep over ({', '.join(checked.sweep.over)}), chosen by "
            "another file; type --multirun, or sweep=..., to run them"
        )
    if name == "doctor":
        from slmflow.doctor.start import start  # not through workflows: MLflow takes two seconds

        start(checked)
        return
    gc.set_threshold(100_000, 50, 50)  # a fifth of the time to import torch is collecting
    # Late: composing, --help and --cfg must not wait for MLflow.
    workflows: Any = import_module("slmflow.workflows")
    getattr(workflows, name)(
        workflows.Invocation(
            config=checked,
            values=values,
            choices=_choices(),
            aliases=not point,
            overrides=tuple(HydraConfig.get().overrides.task),
        )
    )


def _values(config: DictConfig) -> Any:
    values = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    remember(values)
    return values


def _choices() -> dict[str, str]:
    choices = HydraConfig.get().runtime.choices
    return {group: choices[group] for group in GROUPS if choices.get(group) is not None}


def message_of(error: Exception) -> str | None:
    """What to tell a person, or None where it is a bug of ours."""
    message = _message_of(error)
    return None if message is None else redacted(message)


def _message_of(error: Exception) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if is_config_error(error):
        return explain(error)
    kinds = {kind.__name__ for kind in type(error).__mro__}  # MLflow may not be imported yet
    if "WeightsError" in kinds:  # ours, and MLflow's to whoever loads a model by MLflow
        return str(error)
    if "MlflowException" in kinds:
        from slmflow.tracking.reason import reason

        return f"MLflow refuses: {reason(error)}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "the disk"
        return (
            f"no space is left on {where}; free some, or move the cache (SLMFLOW_CACHE), the "
            "downloads (HF_HOME) or temporary files (TMPDIR) to another disk"
        )
    return None


def _record_project_run(
    name: str, message: str, composed: Sequence[tuple[DictConfig, dict[str, str]]]
) -> None:
    """On the run that `mlflow run` opened, where it ends before we joined it: why, and what is
    known of it. The message is out, and nothing here may hide it; the run is FAILED in any case."""
    run_id = os.environ.get("MLFLOW_RUN_ID")  # gone once it is joined
    if not run_id:
        return
    with suppress(Exception, KeyboardInterrupt):
        from slmflow.tracking.parameters import log_error
        from slmflow.tracking.recorded import hide_or_delete
        from slmflow.tracking.run import record_unjoined

        log_error(message, run_id)
        hide_or_delete(run_id)
        known = None
        for config, choices in composed[:1]:
            with suppress(Exception):  # a reference in it may lead nowhere
                known = (_values(config), choices)
        record_unjoined(run_id, name, _typed(), known)


def _tell_moved_clone() -> None:
    if os.environ.get("MLFLOW_RUN_ID"):  # of `mlflow run`, which may have been given -v
        from slmflow.tracking.project_source import tell_moved

        tell_moved()


def _hide_typed(arguments: Sequence[str]) -> None:
    """Before anything else, of what `mlflow run` recorded: whatever fails later, it is gone."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id and any(redacted_override(argument) != argument for argument in arguments):
        from slmflow.tracking.recorded import hide_or_delete, tell_hidden

        tell_hidden(hide_or_delete(run_id))


def _exit(message: str, code: int) -> NoReturn:
    print(f"error: {redacted(message)}", file=sys.stderr)
    _end(code)


def _end(code: int) -> NoReturn:
    """`mlflow run` sends SIGTERM behind its own Ctrl-C, which would make the code another."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def silence_libraries() -> None:
    """Their progress, hints and telemetry; SLMFLOW_VERBOSE=1 shows all but the telemetry."""
    for variable, value in {**QUIET, **DOWNLOADS}.items():
        os.environ.setdefault(variable, value)
    if os.environ.get("SLMFLOW_VERBOSE"):
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("slmflow").setLevel(logging.DEBUG)
        return
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    logging.getLogger().setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
