"""One part of a job: its staged rows are asked, and written with their answers.

What any engine on any node needs to do its share. A part is answered by one call, so its batches,
and with them its answers, are the same wherever that is.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slmflow.answering.reply import Reply
from slmflow.prediction.model import ModelSpec, RestartingModel
from slmflow.prediction.places import find, write_json, write_whole

__all__ = ["ModelSpec", "PartDone", "PartJob", "RestartingModel", "answer_part"]

ROW = "row"
REQUEST, PROBLEM = "slmflow.request", "slmflow.problem"
STAGED_COLUMNS = REQUEST, PROBLEM
"""Of a staged part, beside the row's number and own columns: what the model is asked, as JSON; or
why it cannot be asked."""

ANSWER_FIELDS = (
    pa.field("answer", pa.string()),  # null where there is none
    pa.field("finish_reason", pa.string()),
    pa.field("prompt_tokens", pa.int64()),
    pa.field("completion_tokens", pa.int64()),
    pa.field("error", pa.string()),  # null where there is an answer
)


@dataclass(frozen=True)
class PartJob:
    """URLs that every node can reach."""

    number: int
    rows: int
    input: str  # the staged rows
    output: str  # the Parquet file to write
    done: str  # the record to write after it


@dataclass(frozen=True)
class PartDone:
    number: int
    rows: int
    failed: int  # rows that have an error
    prompt_tokens: int
    completion_tokens: int
    seconds: float  # from reading to writing
    size: int  # of the Parquet file, bytes
    sha256: str  # of the Parquet file
    first_error: str | None = None


def answer_part(
    job: PartJob, model: RestartingModel, answered: Callable[[int], None] = lambda count: None
) -> PartDone:
    """Write the part, then its record; each whole or not at all.

    ``answered`` is told of how many more rows are done, as they come. Raises ``AskError`` where
    the model gives up.
    """
    started = time.perf_counter()
    table = _read(job.input)
    replies = _ask(table, model, answered)
    content = _with_answers(table, replies)
    write_whole(job.output, content)
    done = PartDone(
        number=job.number,
        rows=len(replies),
        failed=sum(reply.error is not None for reply in replies),
        prompt_tokens=sum(reply.prompt_tokens or 0 for reply in replies),
        completion_tokens=sum(reply.completion_tokens or 0 for reply in replies),
        seconds=time.perf_counter() - started,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        first_error=next((reply.error for reply in replies if reply.error is not None), None),
    )
    write_json(job.done, asdict(done))
    return done


def _read(url: str) -> pa.Table:
    system, path = find(url)
    return pq.read_table(pa.BufferReader(system.cat_file(path)), use_threads=False)


def _ask(table: pa.Table, model: RestartingModel, answered: Callable[[int], None]) -> list[Reply]:
    problems = table[PROBLEM].to_pylist()
    replies = [Reply("", error=problem) for problem in problems]
    asked = [index for index, problem in enumerate(problems) if problem is None]
    answered(len(problems) - len(asked))
    requests = table[REQUEST].to_pylist()
    rows: list[dict[str, Any]] = [json.loads(requests[index]) for index in asked]
    for index, reply in zip(asked, model.replies(rows, answered), strict=True):
        replies[index] = reply
    return replies


def _with_answers(table: pa.Table, replies: Sequence[Reply]) -> bytes:
    records = [
        {
            "answer": None if reply.error is not None else _whole_text(reply.text),
            "finish_reason": reply.finish_reason,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "error": None if reply.error is None else _whole_text(reply.error),
        }
        for reply in replies
    ]
    answers = pa.Table.from_pylist(records, pa.schema(ANSWER_FIELDS))
    written = table.drop_columns(list(STAGED_COLUMNS))
    for name in answers.column_names:
        written = written.append_column(answers.schema.field(name), answers[name])
    sink = io.BytesIO()
    pq.write_table(written, sink)
    return sink.getvalue()


def _whole_text(text: str) -> str:
    """Parquet holds UTF-8; a model of others may return half of a character."""
    return text.encode("utf-8", "replace").decode()
