"""Load one MLflow model, answer questions, report as JSON lines. Runs as a script.

It imports nothing of slmflow, so that the model answers with the code that it was packaged with.
Standard input: one JSON object ``{"uri", "model_config", "rows"}``, a row being
``{"messages": [...]}`` or ``{"prompt": "..."}``. Standard output: one JSON object a line, its
``event`` being loaded, answer (one a row, in order), done or failed.
"""

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to stderr

    def say(event: str, **content: Any) -> None:
        out.write(json.dumps({"event": event, **content}) + "\n")

    request = json.load(sys.stdin)
    gc.disable()  # until the model is there: a fifth of the time to import torch is collecting
    try:
        started = time.perf_counter()
        import mlflow

        imported = time.perf_counter()
        model = mlflow.pyfunc.load_model(request["uri"], model_config=request["model_config"])
        loaded = time.perf_counter()
        gc.freeze()  # and at exit as much again, over what was imported
        gc.enable()
        say("loaded", import_seconds=imported - started, load_seconds=loaded - imported)
        ask = _asker(model)
        for row in request["rows"]:
            say("answer", **ask(row))
        say("done", peak_memory_bytes=_peak_memory())
    except Exception as error:  # reported to the parent, which shows it to the person
        say("failed", error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _asker(model: Any) -> Any:
    """A function of one row that fits the model's signature and abilities."""
    names = model.metadata.get_input_schema().input_names()
    if names == ["prompt"]:
        return lambda row: _ask_prompt(model, row)
    return lambda row: _ask_chat(model, row)


def _ask_chat(model: Any, row: dict[str, Any]) -> dict[str, Any]:
    request = {"messages": row.get("messages") or [{"role": "user", "content": row["prompt"]}]}
    try:
        counted = {**request, "stream_options": {"include_usage": True}}
        return _streamed(model, counted, _chat_piece)
    except Exception as error:
        if type(error).__name__ not in ("MlflowException", "NotImplementedError"):
            raise
        if "predict_stream" not in str(error):
            raise
    started = time.perf_counter()
    answer = model.predict(request)
    answer = answer[0] if isinstance(answer, list) else answer
    return {
        "text": answer["choices"][0]["message"]["content"],
        "seconds": time.perf_counter() - started,
        "first_token_seconds": None,
        **(answer.get("usage") or {}),
    }


def _ask_prompt(model: Any, row: dict[str, Any]) -> dict[str, Any]:
    packaged = model.unwrap_python_model().packaged
    text = _prompt_text(packaged, row)
    answer = _streamed(model, {"prompt": text}, lambda piece: (piece, {}))
    prompt, made = packaged.count_tokens(text), packaged.count_tokens(answer["text"])
    return {**answer, "prompt_tokens": prompt, "completion_tokens": made}


def _prompt_text(packaged: Any, row: dict[str, Any]) -> str:
    """Messages in the model's own chat format; as they stand where it has none."""
    if not row.get("messages"):
        return str(row["prompt"])
    try:
        return str(packaged.render(row["messages"]))
    except ValueError:
        return str(row["messages"][-1]["content"])


def _streamed(model: Any, request: dict[str, Any], read: Any) -> dict[str, Any]:
    pieces: list[str] = []
    usage: dict[str, Any] = {}
    started = time.perf_counter()
    first: float | None = None
    for piece in model.predict_stream(request):
        first = time.perf_counter() if first is None else first
        text, told = read(piece)
        pieces.append(text)
        usage |= told
    ended = time.perf_counter()
    return {
        "text": "".join(pieces),
        "seconds": ended - started,
        "first_token_seconds": None if first is None else first - started,
        **usage,
    }


def _chat_piece(chunk: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    told = dict(chunk.get("usage") or {})
    if not chunk["choices"]:  # the last one, with the usage
        return "", told
    choice = chunk["choices"][0]
    if choice.get("finish_reason"):
        told["finish_reason"] = choice["finish_reason"]
    return choice["delta"].get("content") or "", told


def _peak_memory() -> int:
    """Peak resident memory of this process, bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # Not getrusage: its peak is inherited from the process that started this one.
        with Path("/proc/self/status").open() as status:
            peak = next(line for line in status if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    sys.exit(main())
