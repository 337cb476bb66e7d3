"""What to type next: the exact commands for what was just registered."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import mlflow

from slmflow import console
from slmflow.redaction import redacted
from slmflow.tracking.project_source import command
from slmflow.tracking.registry import Registered


def show_next(registered: Sequence[Registered], run_id: str) -> None:
    console.heading("registered")
    for one in registered:
        console.note(f"{one.uri}  alias {one.alias}")
    uri = f"models:/{registered[-1].name}@{registered[-1].alias}"
    console.commands(
        "next",
        [
            *_prepare(),
            ("look at runs, answers and versions in the browser", _ui()),
            ("serve it, with a page to chat", command("serve", f"model_uri={uri}")),
            ("run it again, and compare", command("rerun", f"run_id={run_id}")),
            ("do the same for another model", command("main", "model=qwen2_5_0_5b")),
        ],
    )


def ask_commands(
    address: str, model: str, chats: bool, question: str, key: str | None
) -> list[tuple[str, str]]:
    """How to ask a served model: in the browser, with curl, with OpenAI's client.

    ``key`` is the environment variable that holds the API key, where one is wanted.
    """
    path = "v1/chat/completions" if chats else "v1/completions"
    asked = {"messages": [{"role": "user", "content": question}]} if chats else {"prompt": question}
    headers = "-H 'Content-Type: application/json'"
    if key is not None:
        headers += f' -H "Authorization: Bearer ${key}"'
    curl = f"curl -s {address}/{path} {headers} -d {_quoted(json.dumps(asked))}"
    if not chats:
        return [("with curl", curl)]
    code = f'client.chat.completions.create(model="{model}", messages=[...])'
    environment = f"OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={f'${key}' if key else 'none'}"
    return [
        ("in the browser", f"open {address}"),
        ("with curl", curl),
        (f"with OpenAI's Python client: {code}", f"{environment} python"),
    ]


def _ui() -> str:
    uri = _tracking_uri()
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def _tracking_uri() -> str:
    """Without the user name and password that it may hold."""
    return redacted(re.sub(r"//[^/@]+@", "//", mlflow.get_tracking_uri()))


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
