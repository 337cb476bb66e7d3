"""Run lm-evaluation-harness over one model of this project, report as JSON lines. Runs as a script.

The harness runs in the model's own process: it asks for logits, a choice at a time. Nothing of this
repository is imported, so that the model answers with the code that it was packaged with.

Standard input: one object of ``uri``, ``model_config``, ``tasks``, ``include``, ``limit``,
``chat_template``.
Standard output: one object a line, its ``event`` being

- ``refused``: a task that is not there, or whose data cannot be had; the model was not loaded
- ``answered``: so many requests of one type are ``done``, ``of`` so many
- ``results``: the harness's own; of the tasks without chat template, then of those with it
- ``failed``
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import (
    get_rolling_token_windows,
    handle_non_serializable,
    make_disjoint_window,
)

RESAMPLES = 1000  # of the bootstrap, which takes minutes with the harness's own 100,000
CHAT_TEMPLATE = "apply_chat_template"  # in a task's metadata

Told = Callable[[int, int], None]
Score = tuple[float, bool]


def main() -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to stderr

    def say(event: str, **content: Any) -> None:
        out.write(json.dumps({"event": event, **content}, default=handle_non_serializable) + "\n")

    order = json.load(sys.stdin)
    try:
        manager = _manager(order["tasks"], order["include"])
        tasks = _load_tasks(manager, order["tasks"])
    except Exception as error:  # data sets fail in many ways; the person is told
        say("refused", error=_words(error))
        return 1
    try:
        packaged = _load_model(order["uri"], order["model_config"])
        for chat in (False, True):
            chosen = [task for task in tasks if (order["chat_template"] or _chats(task)) == chat]
            if chosen:
                lm = PackagedLM(packaged, chat, lambda done, of: say("answered", done=done, of=of))
                say("results", results=_evaluate(lm, chosen, manager, order["limit"], chat))
    except Exception as error:
        say("failed", error=_words(error))
        return 1
    return 0


def _evaluate(lm: Any, tasks: list[Any], manager: Any, limit: int | None, chat: bool) -> Any:
    return simple_evaluate(
        lm,
        tasks=tasks,
        limit=limit,
        task_manager=manager,
        apply_chat_template=chat,
        bootstrap_iters=RESAMPLES,
    )


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, NoSuchTask) else f"{type(error).__name__}: {error}"


class NoSuchTask(ValueError):
    """A name that neither the harness nor the included folder has."""


def _manager(names: Sequence[str], include: str | None) -> Any:
    """The folder's own tasks where they do: to read the harness's takes ten seconds."""
    if include is not None:
        own = TaskManager(include_path=include, include_defaults=False)
        if set(names) <= set(own.all_subtasks):  # a group may name the harness's
            return own
    return TaskManager(include_path=include)


def _load_tasks(manager: Any, names: Sequence[str]) -> list[Any]:
    """Tasks and groups, their data loaded. Raises ``NoSuchTask``, and what the data raise."""
    tasks: list[Any] = []
    for name in names:
        if name not in manager.task_index:
            near = get_close_matches(name, manager.all_tasks, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise NoSuchTask(
                f"lm_eval.tasks: lm-evaluation-harness has no task {name!r}; {meant}"
                "Your own are found with lm_eval.include=FOLDER"
            )
        found = manager.load([name])
        groups = found.get("groups", {})
        tasks += [groups[name]] if name in groups else found["tasks"].values()
    return tasks


def _chats(task: Any) -> bool:
    """Whether a task, or every task of a group, asks for the model's chat format."""
    leaves = task.get_all_tasks() if hasattr(task, "get_all_tasks") else [task]
    return all((leaf.config.metadata or {}).get(CHAT_TEMPLATE, False) for leaf in leaves)


def _load_model(uri: str, model_config: dict[str, Any] | None) -> Any:
    import mlflow

    model = mlflow.pyfunc.load_model(uri, model_config=model_config)
    try:
        packaged = model.unwrap_python_model().packaged
    except (mlflow.MlflowException, AttributeError):  # no Python model: the transformers flavour
        packaged = model.get_raw_model()
    if not hasattr(getattr(packaged, "runtime", None), "logits"):
        raise ValueError("the harness needs the model's logits; package it again, or leave it out")
    return packaged


class PackagedLM(TemplateLM):  # type: ignore[misc]
    """A packaged model as the harness asks it. What is generated follows the task's own settings,
    not the search options that the model was packaged with."""

    def __init__(self, packaged: Any, chat: bool, told: Told) -> None:
        super().__init__()
        self._packaged = packaged
        self._runtime = packaged.runtime
        self._chat = chat
        self._told = told

    @property
    def eot_token_id(self) -> int:
        return int(min(self._runtime.eos_ids))

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text is predicted from: the token that begins texts, else the
        one that ends them, as for the harness's own models."""
        try:
            special = self._runtime.template().special_tokens
        except (OSError, ValueError):
            special = {}
        begins = special.get("bos_token") or special.get("eos_token") or ""
        ids = self._runtime.encode(begins, rendered=True)
        return int(ids[0]) if len(ids) == 1 else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self._packaged.name)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        if add_generation_prompt:
            return str(self._packaged.render(chat_history))
        *before, begun = chat_history  # an answer that the task has begun
        return str(self._packaged.render(before)) + begun["content"]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        rendered = self._chat if add_special_tokens is None else not add_special_tokens
        return list(self._runtime.encode(string, rendered=rendered))

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[Score]:
        scores: dict[int, Score] = {}
        for index, score in self._scored([(context, text) for _, context, text in requests]):
            scores[index] = score
            self._told(len(scores), len(requests))
        return [scores[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        likelihoods: list[float] = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            length = self._runtime.context_length
            windows = get_rolling_token_windows(ids, self.prefix_token_id, length, context_len=1)
            pairs = [make_disjoint_window(window) for window in windows]
            likelihoods.append(sum(nats for _, (nats, _) in self._scored(pairs)))
            self._told(len(likelihoods), len(requests))
        return likelihoods

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        from slmflow.served.answer import Answer  # as it was packaged
        from slmflow.served.generate import stream

        prompts = [self._prompt(*request.args) for request in requests]
        texts: dict[int, str] = {}
        for index, event in stream(self._runtime, prompts):
            if isinstance(event, Answer):
                texts[index] = event.text
                self._told(len(texts), len(prompts))
        return [texts[index] for index in range(len(prompts))]

    def _prompt(self, text: str, asked: dict[str, Any]) -> Any:
        """Too long a text loses its beginning, as with the harness's own models."""
        from slmflow.served.generate import Prompt

        options = _options(asked)
        room = self._runtime.context_length - options.max_new_tokens
        if room < 1:
            raise ValueError(
                f"a task asks for {options.max_new_tokens} tokens (max_gen_toks) and the model's "
                f"context has {self._runtime.context_length}"
            )
        ids = tuple(self.tok_encode(text)[-room:]) or (self.prefix_token_id,)
        alone = ids[-1] == self._runtime.pad_id
        return Prompt(ids, options, options.max_new_tokens, alone=alone)

    def _scored(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> Iterator[tuple[int, Score]]:
        """Of every continuation its log-likelihood (nats), and whether greedy search would make it.

        Choices of one token after one context are read off the same logits.
        """
        from slmflow.served.forced import log_probabilities

        same: dict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
        for index, (context, text) in enumerate(pairs):
            read = (*context, *text)[-self._runtime.context_length - 1 : -1]
            same[read, min(len(text), len(read))].append(index)
        for (read, tokens), indices in same.items():
            if not tokens:
                yield from ((index, (0.0, True)) for index in indices)
                continue
            first = pairs[indices[0]][1][-tokens:]
            rows = log_probabilities(self._runtime, read[: len(read) - tokens + 1], first)
            for index in indices:
                targets = list(pairs[index][1][-tokens:])
                nats = float(rows[range(tokens), targets].sum(dtype=float))
                yield index, (nats, rows.argmax(axis=-1).tolist() == targets)


def _options(asked: dict[str, Any]) -> Any:
    """A task's generation_kwargs as search options. Raises ``ValueError`` for one unknown here."""
    from slmflow.served.search import SearchOptions

    given: dict[str, Any] = dict(normalize_gen_kwargs(asked))
    stop = [text for text in given.pop("until") if text]
    if given.pop("do_sample"):
        given.setdefault("temperature", 1.0)
    length = given.pop("max_gen_toks")
    return SearchOptions.from_mapping({**given, "stop": stop, "max_new_tokens": length})


if __name__ == "__main__":
    sys.exit(main())
