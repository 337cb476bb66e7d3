"""JSON Lines and CSV, a row at a time. What is no row has a problem in its place."""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

from slmflow.errors import DataError
from slmflow.prediction.reading.files import InputFile

LONGEST_CELL = 16_777_216  # characters; an open quote would else take in the whole file
NEVER_CLOSED = ("unexpected end of data", "larger than field limit")  # as Python's reader says it


@dataclass(frozen=True)
class TextRow:
    place: str  # as a person finds it: prompts.csv line 3
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_text_rows(file: InputFile) -> Iterator[TextRow]:
    return _json_rows(file) if file.format == "jsonl" else _csv_rows(file)


def csv_columns(file: InputFile) -> list[str]:
    """The names in its first line; none where it is empty. Raises ``DataError``."""
    with file.open() as opened:
        rows = csv.reader(_as_text(opened), strict=True)
        try:
            return _header(file.name, next((cells for cells in rows if cells), []))
        except csv.Error as error:
            raise DataError(f"{file.name}: its first line is no CSV: {error}") from None


def _json_rows(file: InputFile) -> Iterator[TextRow]:
    """Lines end at ``\\n`` alone: texts may hold other breaks. Blank lines are passed over."""
    with file.open() as opened:
        for number, line in enumerate(opened, start=1):
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if content.strip():
                yield _json_row(f"{file.name} line {number}", content)


def _json_row(place: str, line: bytes) -> TextRow:
    try:
        fields = json.loads(line.decode().rstrip(), parse_constant=_no_constant)
        if b"\\u" in line:  # escapes can write what UTF-8 cannot hold
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return TextRow(place, problem=f"is no UTF-8 at byte {error.start + 1}")
    except UnicodeEncodeError:
        return TextRow(place, problem="holds half of a surrogate pair, which is no text")
    except json.JSONDecodeError as error:  # whose own message has a "line 1" in it
        return TextRow(place, problem=f"is no JSON: {error.msg}, column {error.colno}")
    except (ValueError, RecursionError) as error:
        return TextRow(place, problem=f"is no JSON: {error}")
    if not isinstance(fields, dict):
        return TextRow(place, problem='is no JSON object; write {"prompt": "..."}')
    return TextRow(place, fields)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _csv_rows(file: InputFile) -> Iterator[TextRow]:
    """Empty cells are null. A row's place is the line that it begins on.

    Raises ``DataError`` for a quote that is never closed: all rows behind it would be in its cell.
    """
    with file.open() as opened:
        rows = csv.reader(_as_text(opened), strict=True)
        header: list[str] = []
        line = 1
        while True:
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:  # after which the reader goes on with the next line
                yield _broken_row(file.name, line, rows.line_num, error)
            else:
                if header and cells:
                    yield _csv_row(f"{file.name} line {line}", header, cells)
                elif cells:
                    header = _header(file.name, cells)
            line = rows.line_num + 1


def _broken_row(name: str, first: int, last: int, error: csv.Error) -> TextRow:
    """Of the lines that the reader took for it."""
    if any(reason in str(error) for reason in NEVER_CLOSED):
        raise DataError(
            f"{name} line {first}: a quote is opened here and never closed, so that all behind it "
            'would be one cell; close it (a quote within a cell is written "")'
        )
    lines = f"line {first}" if first == last else f"lines {first} to {last}"
    return TextRow(f"{name} {lines}", problem=f"is no CSV row: {error}")


def _as_text(opened: IO[bytes]) -> io.TextIOWrapper:
    csv.field_size_limit(LONGEST_CELL)  # of the process; Python's own ends at 131,072
    # Bytes that are no UTF-8 become halves of surrogate pairs, so that their row can be named.
    return io.TextIOWrapper(opened, "utf-8-sig", errors="surrogateescape", newline="")


def _header(name: str, cells: Sequence[str]) -> list[str]:
    """Raises ``DataError``. pandas leaves the name of its index empty."""
    if len(cells) == 1 and (";" in cells[0] or "\t" in cells[0]):
        raise DataError(f"{name}: its columns are separated by something else than commas")
    if not _is_utf8(cells):
        raise DataError(f"{name}: its first line is no UTF-8")
    return [cell or f"column_{number}" for number, cell in enumerate(cells, start=1)]


def _csv_row(place: str, header: Sequence[str], cells: Sequence[str]) -> TextRow:
    if len(cells) != len(header):
        counts = f"has {len(cells)} cells, but the first line names {len(header)} columns"
        return TextRow(place, problem=counts)
    if not _is_utf8(cells):
        return TextRow(place, problem="is no UTF-8")
    return TextRow(place, {n: cell or None for n, cell in zip(header, cells, strict=True)})


def _is_utf8(cells: Sequence[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True
