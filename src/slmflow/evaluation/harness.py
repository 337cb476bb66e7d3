"""Tasks of lm-evaluation-harness over a packaged model; the parent's side of ``harness_worker.py``.

https://github.com/EleutherAI/lm-evaluation-harness; optional, requirements-lm-eval.txt installs it.
"""

import importlib.util
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from slmflow.answering import ask
from slmflow.answering.ask import AskError, model_environment
from slmflow.errors import ConfigError
from slmflow.redaction import without_secrets

WORKER = Path(ask.__file__).with_name("harness_worker.py")
LAST_LINES = 15
ONE_PROCESS = {"DISABLE_MULTIPROC": "1"}  # the harness's bootstrap would fork the model's process


@dataclass(frozen=True)
class HarnessResult:
    """``metrics`` by MLflow name: ``lm_eval/<task>/<metric>``, its standard error as
    ``<metric>_stderr``; a filter other than none stands before the metric, ``strict-match/``.
    ``raw`` is what the harness returned, every sample included."""

    metrics: Mapping[str, float]
    raw: Mapping[str, Any]


def run_harness(
    uri: str,
    tasks: Sequence[str],
    limit: int | None,
    include: Path | None,
    model_config: Mapping[str, Any],
    answered: Callable[[int, int], None] = lambda done, of: None,
    chat_template: bool = False,
) -> HarnessResult:
    """Run tasks, groups or tags of the harness over a model of this project, in a fresh process.

    ``limit``: rows of each task. ``include``: a folder with tasks of one's own, whose data files
    are named from the working folder. ``model_config`` changes how the model is loaded (threads,
    device), not how it generates: that is the task's to say. A task is put in the model's chat
    format where its ``metadata`` has ``apply_chat_template: true``, or all are with
    ``chat_template``. ``answered(done, of)`` counts the requests of one type; types follow each
    other. Raises ``ConfigError`` where the harness or a task is missing, ``AskError`` with the
    model's own message.
    """
    check_harness(tasks, include)
    order = {
        "uri": uri,
        "model_config": dict(model_config) or None,
        "tasks": list(dict.fromkeys(tasks)),
        "include": None if include is None else str(include),
        "limit": limit,
        "chat_template": chat_template,
    }
    raw: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as errors, _worker(order, errors) as process:
        for event in _events(process):
            kind = event["event"]
            if kind == "answered":
                answered(event["done"], event["of"])
            elif kind == "results":
                raw = _joined(raw, event["results"])
            elif kind == "refused":
                raise ConfigError(event["error"])
            else:
                raise AskError(f"{uri}: {event['error']}")
        if process.wait() != 0 or not raw:
            errors.seek(0)
            last = errors.read().strip().splitlines()[-LAST_LINES:]
            code = f"{uri}: the harness's process ended with exit code {process.returncode}"
            raise AskError("\n".join([code, *last]))
    return HarnessResult(_metrics(raw["results"]), raw)


def log_harness(result: HarnessResult, model_id: str | None = None) -> None:
    """Into the active run: the metrics, also under the model where its id is given;
    ``lm_eval/results.json`` and every question with its answer, ``lm_eval/samples.json``."""
    mlflow.log_metrics(dict(result.metrics), model_id=model_id)
    kept_apart = ("samples", "pretty_env_info")  # the latter names the machine in every detail
    results = {name: value for name, value in result.raw.items() if name not in kept_apart}
    mlflow.log_dict(without_secrets(results), "lm_eval/results.json")
    mlflow.log_dict(result.raw.get("samples", {}), "lm_eval/samples.json")


def check_harness(tasks: Sequence[str], include: Path | None) -> None:
    """Raise ``ConfigError`` where tasks are asked for that cannot be run here."""
    if not tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            f"lm_eval.tasks is {', '.join(tasks)}, and lm-evaluation-harness is not installed; "
            "pip install -r requirements-lm-eval.txt"
        )
    if include is not None and not include.is_dir():
        raise ConfigError(
            f"lm_eval.include is {include}, which is no folder; give one with the YAML files of "
            "your own tasks, or leave it out"
        )


@contextmanager
def _worker(order: Mapping[str, Any], errors: Any) -> Iterator["subprocess.Popen[str]"]:
    # -P: the folder of the script stays off sys.path; the working folder never was on it.
    process = subprocess.Popen(
        [sys.executable, "-P", str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**model_environment(), **ONE_PROCESS},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(BrokenPipeError):  # it died at once; its last lines tell why
            process.stdin.write(json.dumps(order))
            process.stdin.close()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def _events(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _joined(raw: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Two runs of the harness as one: what is a mapping in them is keyed by task."""
    joined = {**more, **raw}
    for name in raw.keys() & more.keys():
        if isinstance(more[name], Mapping) and isinstance(raw[name], Mapping):
            joined[name] = {**raw[name], **more[name]}
    return joined


def _metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """``{"gsm8k": {"exact_match,strict-match": 0.5, ...}}``, the harness's spelling, as MLflow
    takes it. What is no number ("N/A" for an error that cannot be had) is left out."""
    metrics = {}
    for task, found in results.items():
        for key, value in found.items():
            metric, comma, kept = key.partition(",")
            if not comma or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            name = metric if kept == "none" else f"{kept}/{metric}"
            metrics[re.sub(r"[^\w.\-/ ]+", "_", f"lm_eval/{task}/{name}")] = float(value)
    return metrics
