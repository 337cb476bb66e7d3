"""Answers of then and of now, row by row: of an evaluation's candidates, and those of predict."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from slmflow.replay.candidates import paired
from slmflow.replay.record import Record
from slmflow.replay.results import Finding, Sameness, of_one_side

ANSWERS = "answers.parquet"
OUTPUT = "predict.output"
SHOWN = 5  # rows that differ, in the details
CLIP = 60  # characters of an answer


def compare_answers(part: str, then: Record, now: Record, folder: Path) -> Iterator[Finding]:
    """Of each candidate that both evaluations had, by its name."""
    was, is_now = then.documents.get("evaluation.json"), now.documents.get("evaluation.json")
    if was is None or is_now is None:
        return
    for number, (label, other) in enumerate(paired(was, is_now).items()):
        where = f"{part}, {label}"
        rows = _read(then, label, folder / f"{number}-then")
        rows_now = _read(now, other, folder / f"{number}-now")
        if rows is not None and rows_now is not None:
            yield _rows(where, "answers", rows, rows_now)
        elif rows is not None or rows_now is not None:
            yield of_one_side(where, "answers", recorded_then=rows is not None)


def compare_written(part: str, then: Record, now: Record) -> Iterator[Finding]:
    """Of predict: input, model and options, and the rows that were written."""
    was, is_now = then.documents.get("manifest.json"), now.documents.get("manifest.json")
    if was is None and is_now is None:
        return
    if was is None or is_now is None:
        yield of_one_side(part, "rows", recorded_then=was is not None)
        return
    for name, pick in (
        ("input", lambda told: [file["digest"] for file in told["identity"]["input"]]),
        ("model", lambda told: told["identity"]["model"]["digest"]),
        ("options", lambda told: told["identity"]["parameters"]),
    ):
        same = pick(was) == pick(is_now)
        words = "the same" if same else "other than then"
        yield Finding(part, name, Sameness.identical if same else Sameness.different, words)
    files = [[one["sha256"] for one in told["parts"]] for told in (was, is_now)]
    count = sum(one["rows"] for one in was["parts"])
    if files[0] == files[1]:
        words = f"all {count} rows, in files of the same bytes"
        yield Finding(part, "rows", Sameness.identical, words)
        return
    yield _other_files(part, then, now, count)


def _other_files(part: str, then: Record, now: Record, count: int) -> Finding:
    """Files differ: perhaps in how they were written alone, which the rows tell. One file of each
    is in memory at a time."""
    every, others, details = 0, 0, list[str]()
    for files in zip_longest(_files(then), _files(now)):
        was, is_now = ([] if file is None else _table(*file) for file in files)
        if was is None or is_now is None:
            away = "then" if was is None else "now"
            words = f"the files of {count} rows have other bytes; the rows of {away} are not"
            return Finding(part, "rows", Sameness.different, f"{words} within reach")
        for row, row_now in zip_longest(was, is_now):
            if row != row_now:
                others += 1
                if others <= SHOWN:
                    details.append(f"{every}: {_clip(row)} -> {_clip(row_now)}")
            every += 1
    return _told(part, "rows", every, others, details)


def _files(record: Record) -> list[tuple[str, int, str]]:
    """The place of the rows; the number and digest of each file that was written there."""
    digests = [one["sha256"] for one in record.documents["manifest.json"]["parts"]]
    place = record.tags.get(OUTPUT, "")
    return [(place, number, digest) for number, digest in enumerate(digests)]


def _read(evaluation: Record, label: str, folder: Path) -> dict[str, Any] | None:
    """The answers of one candidate, by row; None where no run below the evaluation has them."""
    runs = (part for part in evaluation.parts if part.run.data.params.get("label") == label)
    run = next(runs, None)
    folder.mkdir(parents=True)
    file = None if run is None else run.artifact(ANSWERS, folder)
    if file is None:
        return None
    table = pq.read_table(file, columns=["id", "answer", "error"]).to_pylist()
    return {row["id"]: (row["answer"], row["error"]) for row in table}


def _table(place: str, number: int, digest: str) -> list[Any] | None:
    """The rows of one file; None where it cannot be read, or is by now another job's."""
    with suppress(Exception):  # a place of another machine, or one that is gone
        system, path = url_to_fs(place)
        files = sorted(name for name in system.ls(path, detail=False) if name.endswith(".parquet"))
        content = system.cat_file(files[number])
        if sha256(content).hexdigest() == digest:
            rows: list[Any] = pq.read_table(BytesIO(content)).to_pylist()
            return rows
    return None


def _rows(part: str, what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Finding:
    every = list(dict.fromkeys([*then, *now]))
    others = [key for key in every if then.get(key) != now.get(key)]
    details = [f"{key}: {_clip(then.get(key))} -> {_clip(now.get(key))}" for key in others[:SHOWN]]
    return _told(part, what, len(every), len(others), details)


def _told(part: str, what: str, every: int, others: int, details: list[str]) -> Finding:
    if not others:
        return Finding(part, what, Sameness.identical, f"all {every}")
    return Finding(part, what, Sameness.different, f"{others} of {every} rows", details)


def _clip(row: Any) -> str:
    text = row[0] if isinstance(row, tuple) else row.get("answer") if row else row
    return repr(text)[:CLIP]
