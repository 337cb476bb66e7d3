"""The door between a terminal and the workflows: arguments, config, errors, exit codes."""

import errno
import gc
import logging
import os
import signal
import sys
import warnings
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from slmflow.config.arguments import sweeps, to_overrides
from slmflow.config.explain import explain, is_config_error
from slmflow.config.load import typed
from slmflow.config.store import SCHEMAS, register
from slmflow.errors import ConfigError, UserError
from slmflow.sources import PROJECT_ROOT

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
    "experiment",
)
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
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


def run_entry_point(name: str) -> NoReturn:
    """Compose the config of that name, run the workflow of that name, exit.

    0: done; 1: an error, told in one message; 2: a gate refused; 130: interrupted. A bug keeps
    its stack trace, and ``HYDRA_FULL_ERROR=1`` shows the trace of every error.
    """
    show_traces = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print errors itself and exit
    signal.signal(signal.SIGTERM, _interrupt)  # how `mlflow run` and schedulers cancel
    sys.argv[1:] = to_overrides(sys.argv[1:])
    if sweeps(sys.argv[1:]):
        _demand_sweepable(name)
        sys.argv[1:] = ["--multirun", *sys.argv[1:]]
    register()
    silence_libraries()

    failures: list[Exception] = []

    config_path = str(PROJECT_ROOT / "conf")

    @hydra.main(version_base="1.3", config_path=config_path, config_name=name)  # type: ignore[untyped-decorator]
    def job(config: DictConfig) -> None:
        try:
            run_workflow(name, config)
        except Exception as error:  # kept: Hydra would print it in its own words
            failures.append(error)

    try:
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
        _tag_project_run(message)
    gc.freeze()  # at exit, Python would go over all of torch once more for a second and a half
    sys.exit(max((getattr(failure, "exit_code", 1) for failure in failures), default=0))


def _demand_sweepable(name: str) -> None:
    if not any(field.name == "sweep" for field in fields(SCHEMAS[name])):
        _exit(
            f"{name} cannot be swept: give every key one value, and quotes to a text with a "
            "comma: KEY=\"'a, b'\"",
            1,
        )


def run_workflow(name: str, config: DictConfig, point: bool = False) -> None:
    """Of an entry point; ``point``: as a point of a sweep."""
    choices = HydraConfig.get().runtime.choices
    checked = typed(config)
    if not point and getattr(checked, "sweep", None) is not None and checked.sweep.over:
        raise ConfigError(
            f"this config has points to sweep over ({', '.join(checked.sweep.over)}), chosen by "
            "another file; type --multirun, or sweep=..., to run them"
        )
    gc.set_threshold(100_000, 50, 50)  # a fifth of the time to import torch is collecting
    # Late: composing, --help and --cfg must not wait for MLflow.
    workflows: Any = import_module("slmflow.workflows")
    getattr(workflows, name)(
        workflows.Invocation(
            config=checked,
            values=OmegaConf.to_container(config, resolve=True, enum_to_str=True),
            choices={group: choices[group] for group in GROUPS if choices.get(group) is not None},
            point=point,
        )
    )


def message_of(error: Exception) -> str | None:
    """What to tell a person, or None where it is a bug of ours."""
    if isinstance(error, UserError):
        return str(error)
    if is_config_error(error):
        return explain(error)
    if type(error).__name__ == "MlflowException":  # by name: MLflow may not be imported yet
        return f"MLflow refuses: {str(error).strip().splitlines()[0]}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "the disk"
        return (
            f"no space is left on {where}; free some, or move the cache (SLMFLOW_CACHE), the "
            "downloads (HF_HOME) or temporary files (TMPDIR) to another disk"
        )
    return None


def _tag_project_run(message: str) -> None:
    """Say on the run that `mlflow run` opened why it failed before we joined it."""
    run_id = os.environ.get("MLFLOW_RUN_ID")  # gone once it is joined
    if run_id:
        from mlflow import MlflowClient

        with suppress(Exception):  # the message is out; the run is FAILED in any case
            MlflowClient().set_tag(run_id, "slmflow.error", message[:5000])


def _exit(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def silence_libraries() -> None:
    """Their progress, hints and telemetry; SLMFLOW_VERBOSE=1 shows all but the telemetry."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    if os.environ.get("SLMFLOW_VERBOSE"):
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("slmflow").setLevel(logging.DEBUG)
        return
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    logging.getLogger().setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
