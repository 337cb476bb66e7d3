"""Load one MLflow model and answer the requests that come as JSON lines. Runs as a script.

It imports nothing of this repository: the model answers with the code that it was packaged with.
Standard input: one object ``{"uri", "model_config", "limits"}``, then messages as
``slmflow.served.session`` reads them. Standard output: ``{"event": "loaded", ...}`` or
``{"event": "failed", "error": ...}``, then what the session says.

A process of its own, because the ONNX runtime holds Python's global lock while it reads a prompt.
"""

import gc
import json
import os
import queue
import signal
import sys
import threading
from typing import Any


def main() -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's business

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")

    order = json.loads(sys.stdin.readline())
    gc.disable()  # until the model is there: a fifth of the time to import torch is collecting
    try:
        packaged = _load(order["uri"], order["model_config"])
        from slmflow.served.session import Limits, Session  # as it was packaged
    except ModuleNotFoundError as error:
        say({"event": "failed", "error": f"{error}; where that is slmflow's own, package it again"})
        return 1
    except Exception as error:  # told to the server, which tells the person
        say({"event": "failed", "error": f"{type(error).__name__}: {error}"})
        return 1
    gc.freeze()
    gc.enable()
    say({"event": "loaded", **_about(packaged)})
    inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_read, args=(inbox,), daemon=True).start()
    Session(packaged, Limits(**order["limits"]), say).run(inbox)
    return 0


def _load(uri: str, model_config: dict[str, Any] | None) -> Any:
    import mlflow

    model = mlflow.pyfunc.load_model(uri, model_config=model_config)
    try:
        raw = model.unwrap_python_model().packaged
    except (mlflow.MlflowException, AttributeError):  # no Python model: the transformers flavour
        try:
            raw = model.get_raw_model()
        except NotImplementedError:
            raw = None
    if not hasattr(raw, "chat_job"):
        raise ValueError("it is no model of slmflow; mlflow models serve can serve it")
    return raw


def _about(packaged: Any) -> dict[str, Any]:
    return {
        "name": packaged.name,
        "task": packaged.task,
        "context_length": packaged.runtime.context_length,
        "chats": _chats(packaged),
    }


def _chats(packaged: Any) -> bool:
    """Whether it has a chat template."""
    try:
        packaged.runtime.template()
    except (OSError, ValueError):
        return False
    return True


def _read(inbox: "queue.Queue[dict[str, Any] | None]") -> None:
    for line in sys.stdin:
        inbox.put(json.loads(line))
    inbox.put(None)  # the server is done


if __name__ == "__main__":
    sys.exit(main())
