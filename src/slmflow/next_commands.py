"""What to type next: the exact commands for what was just registered."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import mlflow

from slmflow import console
from slmflow.config.schema import PackagingConfig, TaskName
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
            *_activate(),
            ("look at runs, answers and versions in the browser", _ui()),
            ("serve it", f"mlflow models serve -m {uri} --env-manager local -p {PORT}"),
            ("ask it, in another terminal", _curl(config)),
            ("do the same for another model", "./run main -P model=qwen2_5_0_5b"),
        ],
    )


def _ui() -> str:
    uri = mlflow.get_tracking_uri()
    if uri.startswith("http"):
        return f"open {uri}"
    return f"mlflow ui --backend-store-uri {uri}"


def _curl(config: PackagingConfig) -> str:
    question = config.model.probe.question
    chat = config.task.name is TaskName.chat
    row = {"messages": [{"role": "user", "content": question}]}
    body = json.dumps(row if chat else {"dataframe_records": [{"prompt": question}]})
    return (
        f"curl -s 127.0.0.1:{PORT}/invocations -H 'Content-Type: application/json' "
        f"-d {_quoted(body)}"
    )


def _activate() -> list[tuple[str, str]]:
    """For a virtual environment: MLflow's own commands start others by name."""
    script = Path(sys.prefix) / "bin" / "activate"
    if not script.is_file():
        return []
    here = Path.cwd()
    shown = script.relative_to(here) if script.is_relative_to(here) else script
    return [("once in this shell: the environment", f". {shown}")]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
