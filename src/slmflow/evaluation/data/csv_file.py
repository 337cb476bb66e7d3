"""CSV: comma-separated, UTF-8, the first line names the columns."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from slmflow.evaluation.data.cells import check_columns, fields_from
from slmflow.evaluation.data.raw import RawRow

LONGEST_CELL = 16_777_216  # characters; an open quote would else take in the whole file


def read_csv(path: Path) -> Iterator[RawRow]:
    """A row's place is the line that it begins on: quoted texts may hold line breaks."""
    csv.field_size_limit(LONGEST_CELL)  # of the process; Python's own ends at 131,072
    # Bytes that are no UTF-8 become halves of surrogate pairs, so that their row can be named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)
        header: list[str] = []
        line = 1
        try:
            for cells in rows:
                if header and cells:
                    yield _row(line, header, cells)
                elif cells:
                    _check_header(cells)
                    header = cells
                line = rows.line_num + 1
        except csv.Error as error:
            yield RawRow(f"line {line}", str(line), problem=f"is no CSV row: {error}")
        except ValueError as error:
            yield RawRow(f"line {line}", str(line), problem=str(error))


def _check_header(columns: Sequence[str]) -> None:
    _require_utf8(columns)
    if len(columns) == 1 and re.search("[;\t]", columns[0]):
        raise ValueError("columns are separated by something else than commas")
    check_columns(columns)


def _row(line: int, header: Sequence[str], cells: Sequence[str]) -> RawRow:
    place, number = f"line {line}", str(line)
    try:
        if len(cells) != len(header):
            raise ValueError(
                f"has {len(cells)} cells, but the first line names {len(header)} columns"
            )
        _require_utf8(cells)
        return RawRow(place, number, fields_from(dict(zip(header, cells, strict=True))))
    except ValueError as error:
        return RawRow(place, number, problem=str(error))


def _require_utf8(cells: Sequence[str]) -> None:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        raise ValueError("is no UTF-8") from None
