"""A packaged model as MLflow calls it: rows in, answers out, for either runtime and task."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from slmflow.served import chat
from slmflow.served.answer import Answer
from slmflow.served.generate import Prompt, PromptError, generate, prepare, stream
from slmflow.served.runtime import Runtime
from slmflow.served.search import SEARCH_OPTIONS, SearchOptions
from slmflow.served.template import TemplateError

CHAT_TASK = "chat"
PROMPT_TASK = "prompt"


class PackagedModel:
    """Answers requests with a runtime, under the search options it was packaged with.

    ``settings`` is the ``model_config`` of the MLflow model: task, model (the name that answers
    carry) and every search option by its name, so that one alone can be changed when it is loaded.
    """

    def __init__(self, runtime: Runtime, settings: Mapping[str, Any]) -> None:
        self.runtime = runtime
        self.task: str = settings["task"]
        self.name: str = settings["model"]
        self.search = SearchOptions.from_mapping(
            {name: settings[name] for name in SEARCH_OPTIONS if name in settings}
        )
        # Read once and early: a model that cannot chat says so when it is loaded.
        self.template = runtime.template() if self.task == CHAT_TASK else None

    def predict(self, data: Any) -> list[Any]:
        """Every row's answer, in order: texts for task prompt, ChatCompletion objects for chat.

        Raises ``MlflowException`` (HTTP status 400) naming the first row that cannot be answered,
        before anything is generated.
        """
        rows = _rows(data, "messages" if self.task == CHAT_TASK else "prompt")
        if self.task == PROMPT_TASK:
            prompts = [
                self._checked(index, self._text_prompt, row) for index, row in enumerate(rows)
            ]
            return [answer.text for answer in generate(self.runtime, prompts)]
        requests = [self._checked(index, self._chat_prompts, row) for index, row in enumerate(rows)]
        answers = iter(generate(self.runtime, [p for prompts in requests for p in prompts]))
        return [
            chat.completion([next(answers) for _ in prompts], self.name) for prompts in requests
        ]

    def predict_stream(self, data: Any) -> Iterator[Any]:
        """One row's answer in pieces: texts for task prompt, ChatCompletionChunk objects for chat.

        The pieces join to what ``predict`` answers.
        """
        rows = _rows(data, "messages" if self.task == CHAT_TASK else "prompt")
        if len(rows) != 1:
            raise _refusal(f"predict_stream answers one row at a time and got {len(rows)}")
        if self.task == PROMPT_TASK:
            pieces = stream(self.runtime, self._checked(0, self._text_prompt, rows[0]))
            yield from (piece for piece in pieces if not isinstance(piece, Answer))
            return
        prompts = self._checked(0, self._chat_prompts, {**rows[0], "stream": None})
        if len(prompts) != 1:
            raise _refusal("n: a streamed answer has one choice; leave n out")
        yield from chat.chunks(stream(self.runtime, prompts[0]), self.name)

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt text that the model's chat template makes of the messages."""
        return (self.template or self.runtime.template()).render(messages)

    def count_tokens(self, text: str) -> int:
        return len(self.runtime.encode(text, rendered=True))

    def _text_prompt(self, row: Mapping[str, Any]) -> Prompt:
        text = row["prompt"]
        if not isinstance(text, str):
            raise PromptError(f"prompt is {text!r}; give a text")
        return prepare(self.runtime, text, self.search, rendered=False)

    def _chat_prompts(self, row: Mapping[str, Any]) -> list[Prompt]:
        assert self.template is not None
        request = chat.parse_request(row, self.search)
        text = self.template.render(request.messages)
        return [
            prepare(self.runtime, text, options, rendered=True)
            for options in chat.choices_of(request)
        ]

    def _checked(self, index: int, parse: Any, row: Mapping[str, Any]) -> Any:
        try:
            return parse(row)
        except (chat.RequestError, PromptError, TemplateError) as error:
            raise _refusal(f"row {index}: {error}") from None


def _rows(data: Any, column: str) -> list[dict[str, Any]]:
    """Requests as one dictionary a row, whatever MLflow or a caller handed over.

    A frame, a dictionary, a text or a list of either; MLflow turns ``{"prompt": ["a", "b"]}``
    into a one-row frame whose cell is a list, which counts as two rows here.
    """
    if isinstance(data, pd.DataFrame):
        # Empty cells of pandas' nullable columns are pd.NA, which compares with nothing.
        frame = data.astype(object).where(data.notna(), None)
        rows = [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]
    elif isinstance(data, Mapping):
        rows = [dict(data)]
    elif isinstance(data, str):
        rows = [{column: data}]
    else:
        rows = [dict(row) if isinstance(row, Mapping) else {column: row} for row in data]
    if rows and column not in rows[0]:
        raise _refusal(f"no column {column!r}; got {sorted(rows[0])}")
    if column == "prompt":
        rows = [{**row, column: text} for row in rows for text in _texts(row.get(column))]
    if not rows:
        raise _refusal(f"no rows; give at least one {column}")
    return rows


def _texts(cell: Any) -> list[Any]:
    listed = hasattr(cell, "__iter__") and not isinstance(cell, str | Mapping)
    return list(cell) if listed else [cell]


def _refusal(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
