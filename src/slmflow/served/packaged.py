"""A packaged model as MLflow calls it: rows in, answers out, for either runtime and task."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from slmflow.served import chat, text
from slmflow.served.answer import Answer
from slmflow.served.generate import Event, Prompt, PromptError, generate, prepare, stream
from slmflow.served.request import Asked, RequestError
from slmflow.served.runtime import Runtime, SchemaError
from slmflow.served.search import SEARCH_OPTIONS, SearchOptions
from slmflow.served.template import TemplateError

CHAT_TASK = "chat"
PROMPT_TASK = "prompt"

Reply = chat.ChatReply | text.TextReply


@dataclass(frozen=True)
class Job:
    """One request, ready to be answered: a prompt a choice, and the form of its responses."""

    prompts: tuple[Prompt, ...]
    reply: Reply
    stream: bool


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

        A row that cannot be answered gets ``{"error": {...}}``, OpenAI's error object, in its
        place. Where it is the only row, ``MlflowException`` (HTTP status 400) is raised.
        """
        rows = self._rows(data)
        jobs = [_whole(self._tried(row)) for row in rows]
        prompts = [p for job in jobs if isinstance(job, Job) for p in job.prompts]
        answers = iter(generate(self.runtime, prompts))
        results = [self._result(job, answers) for job in jobs]
        if len(results) == 1 and isinstance(results[0], RequestError):
            raise refusal(str(results[0]))
        return [
            {"error": result.as_dict()} if isinstance(result, RequestError) else result
            for result in results
        ]

    def predict_stream(self, data: Any) -> Iterator[Any]:
        """One row's answer in pieces: texts for task prompt, ChatCompletionChunk objects for chat.

        The pieces join to what ``predict`` answers.
        """
        rows = self._rows(data)
        if len(rows) != 1:
            raise refusal(f"predict_stream answers one row at a time and got {len(rows)}")
        row = rows[0] if self.task == PROMPT_TASK else {**rows[0], "stream": True}
        job = self._tried(row)
        if isinstance(job, RequestError):
            raise refusal(str(job))
        events = stream(self.runtime, job.prompts)
        if self.task == CHAT_TASK:
            yield from chunks(job.reply, events)
        else:
            yield from (event for _, event in events if isinstance(event, str))

    def chat_job(self, body: Mapping[str, Any]) -> Job:
        """A request in OpenAI's Chat Completions form. Raises ``RequestError``."""
        try:
            request = chat.parse_request(body, self.search)
            rendered = self.render(list(request.messages))
            return self._job([rendered], request.asked, chat.ChatReply, rendered=True)
        except (PromptError, TemplateError) as error:
            raise RequestError(str(error), "messages", getattr(error, "code", None)) from None

    def text_job(self, body: Mapping[str, Any]) -> Job:
        """A request in OpenAI's Completions form: prompts as they stand, without a template.

        Raises ``RequestError``.
        """
        try:
            request = text.parse_request(body, self.search)
            return self._job(request.prompts, request.asked, text.TextReply, rendered=False)
        except PromptError as error:
            raise RequestError(str(error), "prompt", error.code) from None

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt text that the model's chat template makes of the messages."""
        return (self.template or self.runtime.template()).render(messages)

    def count_tokens(self, text: str) -> int:
        return len(self.runtime.encode(text, rendered=True))

    def _job(
        self,
        texts: Sequence[str],
        asked: Asked,
        reply: Callable[[str, Asked], Reply],
        rendered: bool,
    ) -> Job:
        if asked.schema is not None:
            self._check_schema(asked)
        prompts = tuple(
            prepare(self.runtime, one, options, rendered, asked.schema)
            for one in texts
            for options in options_of_choices(asked)
        )
        return Job(prompts, reply(self.name, asked), asked.stream)

    def _check_schema(self, asked: Asked) -> None:
        if asked.options.num_beams > 1:
            raise RequestError("response_format needs search.num_beams 1", "response_format")
        assert asked.schema is not None
        try:
            self.runtime.check_schema(asked.schema)
        except SchemaError as error:
            raise not_followed(error) from None

    def _tried(self, row: Mapping[str, Any]) -> Job | RequestError:
        try:
            if self.task == PROMPT_TASK:
                return self.text_job({**row, "prompt": [row.get("prompt")]})
            return self.chat_job(row)
        except RequestError as error:
            return error

    def _result(self, job: Job | RequestError, answers: Iterator[Answer | SchemaError]) -> Any:
        if isinstance(job, RequestError):
            return job
        own: list[Answer] = []
        failed: RequestError | None = None
        for answer in islice(answers, len(job.prompts)):
            if isinstance(answer, SchemaError):
                failed = not_followed(answer)
            else:
                own.append(answer)
        if failed is not None:
            return failed
        return job.reply.whole(own) if self.task == CHAT_TASK else own[0].text

    def _rows(self, data: Any) -> list[dict[str, Any]]:
        return rows_of(data, "messages" if self.task == CHAT_TASK else "prompt")


def _whole(job: Job | RequestError) -> Job | RequestError:
    if isinstance(job, Job) and job.stream:
        return RequestError(
            "stream: predict answers in one piece; call predict_stream, or ask the entry point "
            "serve at /v1/chat/completions",
            "stream",
        )
    return job


def not_followed(error: SchemaError) -> RequestError:
    return RequestError(str(error), "response_format")


def options_of_choices(asked: Asked) -> list[SearchOptions]:
    """The options of each of ``n`` answers: seeds count up, so that answers differ."""
    seed = asked.options.seed
    if seed is None:
        return [asked.options] * asked.n
    return [asked.options.changed({"seed": (seed + i) % 2**31}) for i in range(asked.n)]


def chunks(reply: Reply, events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    """The chunk objects of one streamed response, usage last where it was asked for."""
    answers: dict[int, Answer] = {}
    for index, event in events:
        if isinstance(event, str):
            yield reply.piece(index, event)
        elif isinstance(event, SchemaError):
            raise refusal(str(event))
        else:
            answers[index] = event
            yield reply.end(index, event)
    total = reply.total([answers[index] for index in sorted(answers)])
    if total is not None:
        yield total


def rows_of(data: Any, column: str) -> list[dict[str, Any]]:
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
    if rows and not any(column in row for row in rows):
        raise refusal(f"no column {column!r}; got {sorted(rows[0])}")
    if column == "prompt":
        rows = [{**row, column: text} for row in rows for text in _texts(row.get(column))]
    if not rows:
        raise refusal(f"no rows; give at least one {column}")
    return rows


def refusal(message: str) -> MlflowException:
    """What MLflow's scoring server answers with status 400."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def _texts(cell: Any) -> list[Any]:
    listed = hasattr(cell, "__iter__") and not isinstance(cell, str | Mapping)
    return list(cell) if listed else [cell]
