"""Parquet, a batch of rows at a time."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.parquet import ParquetFile

from slmflow.errors import DataError
from slmflow.evaluation.data.cells import check_columns, fields_from
from slmflow.evaluation.data.raw import RawRow

BATCH = 256  # rows
BUFFER = 65_536  # bytes a column
PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def read_parquet(path: Path) -> Iterator[RawRow]:
    """``messages`` and ``tags`` are nested columns or JSON text, ``json_schema`` is JSON text.

    Raises ``DataError`` where the file is no Parquet.
    """
    try:
        # Otherwise pyarrow reads a row group, which can be the whole file, before its first row.
        with ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            yield from _rows(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None


def _rows(file: ParquetFile) -> Iterator[RawRow]:
    names = file.schema_arrow.names
    columns = [name for name in names if not PANDAS_INDEX.fullmatch(name)]
    try:
        check_columns(columns)
    except ValueError as error:
        yield RawRow("columns", "0", problem=str(error))
        return
    begin = 0
    for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
        for index in range(batch.num_rows):
            yield _row(begin + index + 1, batch, index)
        begin += batch.num_rows


def _row(row: int, batch: pyarrow.RecordBatch, index: int) -> RawRow:
    place, number = f"row {row}", str(row)
    try:
        cells = batch.slice(index, 1).to_pylist()[0]
        return RawRow(place, number, fields_from(_plain(cells)))
    except UnicodeDecodeError:
        return RawRow(place, number, problem="is no UTF-8")
    except ValueError as error:
        return RawRow(place, number, problem=str(error))


def _plain(cells: dict[str, Any]) -> dict[str, Any]:
    """Maps as objects. Raises ``ValueError``."""
    if isinstance(cells.get("json_schema"), dict):
        raise ValueError(
            "json_schema is a nested column, which gives every row the fields of all; "
            "write it as JSON text"
        )
    if isinstance(cells.get("tags"), list):
        cells["tags"] = dict(cells["tags"])
    return cells
