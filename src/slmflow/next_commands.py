"""What to type next: the exact commands for what was just registered."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import mlflow

from slmflow import console
from slmflow.config.schema import PackagingConfig, TaskName
from slmflow.sources import PROJECT_ROOT
from slmflow.tracking.registry import Registered

PORT = 5001  # the UI takes 5000


def show_next(registered: Sequence[Registered], config: PackagingConfig) -> None:
    console.heading("registered")
    for one in registered:
        console.note(f"{one.uri}  alias {one.alias}")
    uri = f"models:/{registered[-1].name}@{registered[-1].alias}"
    console.commands(
        "next",
        [
            *_prepare(),
            ("look at runs, answers and versions in the browser", _ui()),
            ("serve it", f"mlflow models serve -m {uri} --env-manager local -p {PORT}"),
            ("ask it, in another terminal", _curl(config)),
            ("do the same for another model", f"{PROJECT_ROOT}/run main -P model=qwen2_5_0_5b"),
        ],
    )


def _ui() -> str:
    uri = _tracking_uri()
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def _tracking_uri() -> str:
    """Without the user name and password that it may hold."""
    return re.sub(r"//[^/@]+@", "//", mlflow.get_tracking_uri())


def _curl(config: PackagingConfig) -> str:
    question = config.model.probe.question
    chat = config.task.name is TaskName.chat
    row = {"messages": [{"role": "user", "content": question}]}
    body = json.dumps(row if chat else {"dataframe_records": [{"prompt": question}]})
    return (
        f"curl -s 127.0.0.1:{PORT}/invocations -H 'Content-Type: application/json' "
        f"-d {_quoted(body)}"
    )


def _prepare() -> list[tuple[str, str]]:
    """Absolute, because `mlflow run` works in another folder than the person."""
    commands = []
    script = Path(sys.prefix) / "bin" / "activate"
    if script.is_file():  # MLflow's own commands start others by name
        commands.append(("once in this shell: the environment", f". {script}"))
    commands.append(("and where the models are", f"export MLFLOW_TRACKING_URI={_tracking_uri()}"))
    return commands


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
