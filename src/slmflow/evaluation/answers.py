"""What was answered, kept on disk: an evaluation that was cut off goes on where it was, and a
new metric costs no new generation.

One sqlite file a model and its parameters, below the cache folder. A reply is written as soon as
its batch is answered; a process that is killed loses the batch that it was in.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slmflow import cache
from slmflow.answering.reply import Reply
from slmflow.evaluation.candidates import Candidate

WAIT_SECONDS = 60.0  # for another evaluation that writes to the same file
UNNOTICED = ("threads",)  # parameters that say nothing about the answer

Request = Mapping[str, Any]


class AnswerStore:
    """The answers of one candidate, by request. A context manager."""

    def __init__(self, candidate: Candidate) -> None:
        told = {k: v for k, v in candidate.parameters.items() if k not in UNNOTICED}
        name = hashlib.sha256(_canonical([candidate.digest, told])).hexdigest()
        self.path: Path = cache.root() / "answers" / f"{name[:32]}.db"

    def __enter__(self) -> "AnswerStore":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
        with self._connection:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (request BLOB PRIMARY KEY, reply TEXT)"
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def find(self, requests: Sequence[Request]) -> list[Reply | None]:
        """The reply of each request, None where it was never answered."""
        with closing(self._connection.cursor()) as cursor:
            found = [
                cursor.execute("SELECT reply FROM replies WHERE request = ?", (_key(r),)).fetchone()
                for r in requests
            ]
        return [None if row is None else Reply(**json.loads(row[0])) for row in found]

    def keep(self, answered: Iterable[tuple[Request, Reply]]) -> None:
        """All of them or none. Those that failed are left out: they are asked again."""
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO replies VALUES (?, ?)",
                [
                    (_key(request), json.dumps(asdict(reply)))
                    for request, reply in answered
                    if reply.error is None
                ],
            )

    def forget(self) -> None:
        with self._connection:
            self._connection.execute("DELETE FROM replies")


def _key(request: Request) -> bytes:
    return hashlib.sha256(_canonical(request)).digest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
