"""Files to Arrow batches: own columns, what is asked, and why a row cannot be."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from slmflow.prediction.part import PROBLEM, REQUEST
from slmflow.prediction.reading.files import InputFile, readable
from slmflow.prediction.reading.request import ASKS, request_of
from slmflow.prediction.reading.text_rows import TextRow, read_text_rows

BATCH = 256  # rows
BUFFER = 65_536  # bytes a column
ASKED = (pa.field(REQUEST, pa.string()), pa.field(PROBLEM, pa.string()))


def read_batches(
    file: InputFile, columns: pa.Schema, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """``columns`` are the file's own, ``schema`` those of all files; then ``ASKED``.

    Raises ``DataError`` where the file is damaged or was changed.
    """
    read = _parquet if file.format == "parquet" else _texts
    with readable(file):
        for own, asked in read(file, columns):
            arrays = [_aligned(own, field) for field in schema]
            arrays += [pa.array(values, pa.string()) for values in zip(*asked, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema([*schema, *ASKED]))


Read = tuple[pa.RecordBatch, list[tuple[str | None, str | None]]]


def _texts(file: InputFile, columns: pa.Schema) -> Iterator[Read]:
    rows = read_text_rows(file)
    while some := list(islice(rows, BATCH)):
        arrays = [_array(some, field) for field in columns]
        asked = [
            (None, f"{row.place}: {row.problem}")
            if row.problem is not None
            else _asked(row.fields, row.place)
            for row in some
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=columns), asked


def _array(rows: Sequence[TextRow], field: pa.Field) -> pa.Array:
    values = [row.fields.get(field.name) for row in rows]
    if pa.types.is_string(field.type):
        values = [_text(value) for value in values]
    elif pa.types.is_floating(field.type):
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, field.type)


def _text(value: Any) -> str | None:
    """Texts as they are, everything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _parquet(file: InputFile, columns: pa.Schema) -> Iterator[Read]:
    # Otherwise pyarrow reads a row group, which can be the whole file, before its first row.
    with (
        file.open() as opened,
        ParquetFile(opened, buffer_size=BUFFER, pre_buffer=False) as parquet,
    ):
        before = 0
        for batch in parquet.iter_batches(BATCH, use_threads=False):
            held = {name: _values(batch[name]) for name in ASKS if name in batch.schema.names}
            asked = [
                _asked({name: values[index] for name, values in held.items()}, place)
                for index in range(batch.num_rows)
                for place in [f"{file.name} row {before + index + 1}"]
            ]
            yield batch, asked
            before += batch.num_rows


def _values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # one of them is no UTF-8
        return [_value(column[index]) for index in range(len(column))]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b"no UTF-8"


def _asked(fields: dict[str, Any], place: str) -> tuple[str | None, str | None]:
    try:
        return json.dumps(request_of(fields)), None
    except ValueError as error:
        return None, f"{place}: {error}"


def _aligned(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    column = batch[field.name]
    return column if column.type == field.type else column.cast(field.type)
