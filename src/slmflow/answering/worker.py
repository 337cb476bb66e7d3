"""Load one MLflow model and do with it what it is told. Runs as a script.

It imports nothing of this repository, so that the model answers with the code that it was packaged
with. Standard input and output: one JSON object a line. First comes ``{"uri", "model_config"}``,
answered with the event ``loaded`` or ``failed``; then orders, a key each, whose answer ends with
the event ``done``, or ``failed`` where one cannot be carried out:

- ``{"answer": [row, ...]}``: an event ``reply`` a row, with its ``index``, as they come
- ``{"measure": [text, ...], "setting": {...}}``: an event ``measured``, or ``unfit``, with a reason
- ``{"likelihood": [[row, reference], ...]}``: an event ``likelihood`` a row
- ``{"observe": [row, ...], "new_tokens", "save": folder or null, "least"}``: an event ``observed``
  a row, of at least so many tokens
- ``{"force": [[prompt ids, answer ids], ...], "against"}``: an event ``forced`` a row, or
  ``other_vocabulary`` where the two cannot be compared
- ``{"memory": true}``: an event ``memory``

A row is ``{"messages": [...]}`` or ``{"prompt": "..."}``.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

BATCH_ROWS = 16  # answered by one call, so that what is answered is known after each
WARM_UP_TOKENS = 2
MEBIBYTE = 1024 * 1024
Event = dict[str, Any]


def main() -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to stderr

    def say(event: Event) -> None:
        out.write(json.dumps(event) + "\n")

    begin = json.loads(sys.stdin.readline())
    try:
        model, seconds = _load(begin["uri"], begin["model_config"])
        packaged = _packaged(model)
    except Exception as error:  # reported to the parent, which shows it to the person
        say(_failed(error))
        return 1
    say({"event": "loaded", "load_seconds": seconds, "packaged": packaged is not None})
    subject = _Foreign(model) if packaged is None else _Packaged(model, packaged)
    for line in sys.stdin:
        try:
            for event in _carry_out(subject, json.loads(line)):
                say(event)
        except Exception as error:
            say(_failed(error))
        else:
            say({"event": "done"})
    return 0


def _failed(error: Exception) -> Event:
    return {"event": "failed", "error": f"{type(error).__name__}: {error}"}


def _load(uri: str, model_config: dict[str, Any] | None) -> tuple[Any, float]:
    """The model, and the seconds that it took, without the import of MLflow."""
    gc.disable()  # until the model is there: a fifth of the time to import torch is collecting
    import mlflow

    started = time.perf_counter()
    model = mlflow.pyfunc.load_model(uri, model_config=model_config)
    seconds = time.perf_counter() - started
    gc.freeze()  # and at exit as much again, over what was imported
    gc.enable()
    return model, seconds


def _packaged(model: Any) -> Any:
    """What this project's models carry; None in any other."""
    from mlflow import MlflowException

    try:
        inner = model.unwrap_python_model().packaged
    except (MlflowException, AttributeError):  # no Python model: the transformers flavour
        try:
            inner = model.get_raw_model()
        except NotImplementedError:
            inner = None
    return inner if hasattr(inner, "chat_job") else None


def _carry_out(subject: Any, order: dict[str, Any]) -> Iterator[Event]:
    if "answer" in order:
        yield from ({"event": "reply", **reply} for reply in subject.answers(order["answer"]))
    elif "measure" in order:
        yield from subject.measure(order["measure"], **order["setting"])
    elif "likelihood" in order:
        yield from (subject.likelihood(row, reference) for row, reference in order["likelihood"])
    elif "observe" in order:
        length = order["new_tokens"], order["save"], order["least"]
        yield from subject.observe(order["observe"], *length)
    elif "force" in order:
        yield from subject.force(order["force"], Path(order["against"]))
    else:
        yield {"event": "memory", "peak": _peak_memory(), "device": _device_memory()}


class _Packaged:
    """A model of this project: batches, token counts, prompts and logits can be had."""

    def __init__(self, model: Any, packaged: Any) -> None:
        self._model = model
        self._packaged = packaged
        self._runtime = packaged.runtime
        self._texts = packaged.task == "prompt"

    def answers(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """In batches of rows of about one length in tokens, which need little padding."""
        order = sorted(range(len(rows)), key=lambda index: self._tokens(rows[index]))
        for start in range(0, len(order), BATCH_ROWS):
            indices = order[start : start + BATCH_ROWS]
            replies = self._batch([rows[index] for index in indices])
            for index, reply in zip(indices, replies, strict=True):
                yield {"index": index, **reply}

    def _tokens(self, row: dict[str, Any]) -> int:
        try:
            texts = [message["content"] for message in _messages(row)]
            return sum(self._packaged.count_tokens(text) for text in texts)
        except Exception:  # what is no text is refused when it is asked
            return _length(row)

    def _batch(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        if self._texts:
            prompts = [self._prompt(row) for row in rows]
            answers = _each(self._model, [{"prompt": prompt} for prompt in prompts])
            return map(self._text_reply, prompts, answers)
        answers = _each(self._model, [{"messages": _messages(row)} for row in rows])
        return map(_chat_reply, answers)

    def measure(
        self, texts: list[str], prompt_tokens: int, new_tokens: int, batch_size: int
    ) -> Iterator[Event]:
        room = self._runtime.context_length - new_tokens
        if prompt_tokens > room:
            reason = f"the model's context leaves {room} tokens for a prompt"
            yield {"event": "unfit", "reason": reason}
            return
        prompts = [self._cut(texts[i % len(texts)], prompt_tokens) for i in range(batch_size)]
        self._timed(prompts, WARM_UP_TOKENS)
        yield {"event": "measured", "prompt_tokens": prompt_tokens} | self._timed(
            prompts, new_tokens
        )

    def likelihood(self, row: dict[str, Any], reference: str) -> Event:
        from slmflow.served import forced  # as it was packaged

        text, prompt_ids = forced.prompt_of(self._packaged, row)
        answer_ids = forced.answer_ids(self._packaged, text, prompt_ids, reference)
        nats, tokens = forced.log_likelihood(self._runtime, prompt_ids, answer_ids)
        return {"event": "likelihood", "nats": nats, "tokens": tokens}

    def observe(
        self, rows: list[dict[str, Any]], new_tokens: int, save: str | None, least: int
    ) -> Iterator[Event]:
        """Prompts and greedy answers; the log-probabilities as ``save/<row>.npy``."""
        import numpy as np

        from slmflow.served import forced

        for index, row in enumerate(rows):
            text, ids = forced.prompt_of(self._packaged, row)
            if least:
                answer = self._at_length(ids, new_tokens, least)
            else:
                answer = forced.greedy(self._runtime, ids, new_tokens)
            if answer and save is not None:
                read = forced.log_probabilities(self._runtime, ids, answer)
                np.save(Path(save) / f"{index}.npy", read)
            shown = self._runtime.decode(answer)
            yield {
                "event": "observed",
                "prompt": text,
                "prompt_ids": list(ids),
                "answer_ids": list(answer),
                "answer": shown,
            }

    def _at_length(self, ids: list[int], new_tokens: int, least: int) -> list[int]:
        """Greedy; no end token is chosen before ``least`` tokens. None where there is no room."""
        from contextlib import closing

        from slmflow.served.search import SearchOptions

        room = min(new_tokens, self._runtime.context_length - len(ids))
        if room < 1:
            return []
        options = SearchOptions(max_new_tokens=room, min_new_tokens=min(least, room))
        with closing(self._runtime.steps([ids], options, room)) as steps:
            return [int(token) for (token,) in steps]

    def force(self, pairs: list[list[list[int]]], against: Path) -> Iterator[Event]:
        """The reference's own prompts and answers, read by this model."""
        import numpy as np

        from slmflow.served import forced

        for index, (prompt_ids, answer_ids) in enumerate(pairs):
            if not answer_ids:
                yield {"event": "forced", "tokens": 0, "same": 0, "kl_sum": 0.0, "kl_max": 0.0}
                continue
            own = forced.log_probabilities(self._runtime, prompt_ids, answer_ids)
            reference = np.load(against / f"{index}.npy", allow_pickle=False)
            if own.shape != reference.shape:
                sizes = [reference.shape[1], own.shape[1]]
                yield {"event": "other_vocabulary", "vocabularies": sizes}
                return
            same, kl = forced.divergence(reference, own)
            yield {
                "event": "forced",
                "tokens": len(answer_ids),
                "same": int(same.sum()),
                "kl_sum": float(kl.sum()),
                "kl_max": float(kl.max()),
            }

    def _prompt(self, row: dict[str, Any]) -> str:
        """Messages in the model's own chat format; as they stand where it has none."""
        if not row.get("messages"):
            return str(row["prompt"])
        try:
            return str(self._packaged.render(row["messages"]))
        except ValueError:
            return "\n".join(message["content"] for message in row["messages"])

    def _text_reply(self, prompt: str, answer: Any) -> dict[str, Any]:
        if isinstance(answer, dict):
            return {"text": "", "error": answer["error"]["message"]}
        count = self._packaged.count_tokens
        made = count(answer) if answer else 0
        return {"text": answer, "prompt_tokens": count(prompt), "completion_tokens": made}

    def _cut(self, text: str, tokens: int) -> tuple[int, ...]:
        ids: list[int] = []
        while len(ids) < tokens:  # a short text is read again
            ids += self._runtime.encode(text, rendered=True)
        # From its middle, where no token of a beginning or an end stands.
        start = (len(ids) - tokens) // 2
        return tuple(ids[start : start + tokens])

    def _timed(self, prompts: list[tuple[int, ...]], new_tokens: int) -> Event:
        from dataclasses import replace

        from slmflow.served.generate import Batch, Prompt
        from slmflow.served.search import SearchOptions

        options = SearchOptions(max_new_tokens=new_tokens)
        if hasattr(options, "min_new_tokens"):  # models packaged earlier may end before
            options = replace(options, min_new_tokens=new_tokens)
        batch = Batch(self._runtime, [Prompt(ids, options, new_tokens) for ids in prompts])
        times = [time.perf_counter()]
        times += [time.perf_counter() for _ in batch.steps()]
        # The last event only says that all is over.
        steps = [after - before for before, after in pairwise(times)]
        made = steps[:new_tokens]
        return {
            "completion_tokens": len(made) * len(prompts),
            "seconds": sum(made),
            "first_token_seconds": made[0],
            "step_seconds": made[1:],
        }


class _Foreign:
    """Any other MLflow model: one question at a time, and what its answer tells."""

    def __init__(self, model: Any) -> None:
        self._model = model
        schema = model.metadata.get_input_schema()
        names = [] if schema is None else schema.input_names()
        self._chats = not names or "messages" in names
        self._column = next((name for name in names if name), None)

    def answers(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for index, row in enumerate(rows):
            yield {"index": index, **self._reply(row)}

    def measure(
        self, texts: list[str], prompt_tokens: int, new_tokens: int, batch_size: int
    ) -> Iterator[Event]:
        if batch_size > 1:
            yield {"event": "unfit", "reason": "it answers one question at a time"}
            return
        text = " ".join(texts[0].split()[: max(1, prompt_tokens * 3 // 4)])
        started = time.perf_counter()
        reply = self._reply({"prompt": text})
        seconds = time.perf_counter() - started
        if reply.get("error") or not reply.get("completion_tokens"):
            yield {"event": "unfit", "reason": reply.get("error") or "it counts no tokens"}
            return
        yield {
            "event": "measured",
            "prompt_tokens": reply.get("prompt_tokens") or prompt_tokens,
            "completion_tokens": reply["completion_tokens"],
            "seconds": seconds,
            "first_token_seconds": None,
            "step_seconds": [],
        }

    def likelihood(self, row: dict[str, Any], reference: str) -> Event:
        raise ValueError("its logits cannot be seen")

    def observe(
        self, rows: list[dict[str, Any]], new_tokens: int, save: str | None, least: int
    ) -> Iterator[Event]:
        raise ValueError("its prompts cannot be seen")

    def force(self, pairs: list[list[list[int]]], against: Path) -> Iterator[Event]:
        raise ValueError("its logits cannot be seen")

    def _reply(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._chats:
                return _chat_reply(self._model.predict({"messages": _messages(row)}))
            return {"text": _text_in(self._model.predict(self._text(row)))}
        except Exception as error:  # this row's; the next may well be answered
            return {"text": "", "error": f"{type(error).__name__}: {error}"}

    def _text(self, row: dict[str, Any]) -> Any:
        text = row.get("prompt") or "\n".join(m["content"] for m in row["messages"])
        if self._column is None:
            return [text]
        import pandas as pd  # of a dictionary, MLflow would make a row whose cell is a list

        return pd.DataFrame({self._column: [text]})


def _each(model: Any, requests: list[dict[str, Any]]) -> list[Any]:
    try:
        return list(model.predict(requests))
    except Exception as error:
        # One row alone is refused by MlflowException; by any other, the process may be broken.
        if len(requests) > 1 or type(error).__name__ != "MlflowException":
            raise
        return [{"error": {"message": str(error)}}]


def _length(row: dict[str, Any]) -> int:
    return sum(len(message["content"]) for message in _messages(row))


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    return row.get("messages") or [{"role": "user", "content": row["prompt"]}]


def _chat_reply(answer: Any) -> dict[str, Any]:
    answer = answer[0] if isinstance(answer, list) else answer
    if not isinstance(answer, dict):
        return {"text": _text_in(answer)}
    if "error" in answer:
        return {"text": "", "error": answer["error"]["message"]}
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    return {
        "text": choice["message"]["content"] or "",
        "finish_reason": choice.get("finish_reason"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
    }


def _text_in(answer: Any) -> str:
    """The first text in what a model returned: a text, a list, a frame, an array, a record."""
    if hasattr(answer, "to_dict"):
        answer = list(answer.to_dict(orient="list").values())
    elif hasattr(answer, "tolist"):
        answer = answer.tolist()
    while isinstance(answer, list | tuple | dict):
        answer = next(iter(answer.values() if isinstance(answer, dict) else answer), "")
    return str(answer)


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


def _device_memory() -> int | None:
    """What this process holds on NVIDIA GPUs, bytes: runtimes keep what they have once taken."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout
    used = [line.split(",") for line in told.splitlines()]
    mine = [int(memory) for pid, memory in used if int(pid) == os.getpid()]
    return sum(mine) * MEBIBYTE if mine else None


if __name__ == "__main__":
    sys.exit(main())
