"""The rows' own columns: one schema for all files of an input, and so for all parts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from slmflow.errors import DataError
from slmflow.prediction.part import ANSWER_FIELDS, ROW, STAGED_COLUMNS
from slmflow.prediction.reading.files import InputFile, readable
from slmflow.prediction.reading.request import ASKS
from slmflow.prediction.reading.text_rows import csv_columns, read_text_rows

TAKEN = (ROW, *STAGED_COLUMNS, *(column.name for column in ANSWER_FIELDS))
EXACT = 2**53  # up to here a float holds every whole number
LONGEST = 2**63
TYPES: Mapping[frozenset[str], pa.DataType] = {
    frozenset(): pa.null(),
    frozenset({"flag"}): pa.bool_(),
    frozenset({"whole"}): pa.int64(),
    frozenset({"long"}): pa.int64(),
    frozenset({"whole", "long"}): pa.int64(),
    frozenset({"number"}): pa.float64(),
    frozenset({"whole", "number"}): pa.float64(),
}
"""By the kinds of values that a column of JSON Lines has; text for every other mixture."""


def file_schemas(files: Sequence[InputFile]) -> list[pa.Schema]:
    """The columns of each file. CSV holds texts; those of JSON Lines are one for all such files.

    Raises ``DataError``.
    """
    lines = _json_schema([file for file in files if file.format == "jsonl"])
    schemas = []
    for file in files:
        with readable(file):
            schema = lines if file.format == "jsonl" else _schema(file)
        schemas.append(schema)
        twice = [name for name in schema.names if schema.names.count(name) > 1]
        if twice:
            raise DataError(f"{file.name}: column {twice[0]!r} stands there twice; rename one")
    return schemas


def unified(files: Sequence[InputFile], schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The columns of all files; what one lacks is null in its rows. Raises ``DataError``."""
    whole = pa.schema([])
    for file, schema in zip(files, schemas, strict=True):
        try:
            whole = pa.unify_schemas([whole, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                f"{file.name} has a column of another type than the files before it: {error}; "
                "give both the same type, or make them two jobs"
            ) from None
    if whole.names and not set(ASKS) & set(whole.names):  # none at all: no row could be read
        raise DataError(
            f"the rows have no prompt; their columns are {', '.join(whole.names) or 'none'}; "
            "name one prompt (a text), or messages (a list of role and content)"
        )
    return pa.schema(
        [pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in whole]
    )


def output_names(own: Iterable[str]) -> dict[str, str]:
    """What each column is called in the output: its name, or ``input_`` before one that is taken.

    Case says nothing here: Spark and other databases tell no ``Answer`` from ``answer``.
    """
    names = list(own)
    taken = {name.lower() for name in TAKEN}
    kept = {name: name for name in names if name.lower() not in taken}
    used = taken | {name.lower() for name in kept}
    for name in names:
        if name not in kept:
            free = f"input_{name}"
            while free.lower() in used:
                free = f"input_{free}"
            used.add(free.lower())
            kept[name] = free
    return {name: kept[name] for name in names}


def _schema(file: InputFile) -> pa.Schema:
    if file.format == "csv":
        return pa.schema([(name, pa.string()) for name in csv_columns(file)])
    with file.open() as opened, ParquetFile(opened) as parquet:
        return parquet.schema_arrow.remove_metadata()


def _json_schema(files: Iterable[InputFile]) -> pa.Schema:
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for file in files:
        with readable(file):
            for row in read_text_rows(file):
                for name, value in row.fields.items():
                    kinds[name] |= _kinds(value)
    return pa.schema([(name, TYPES.get(frozenset(k), pa.string())) for name, k in kinds.items()])


def _kinds(value: Any) -> set[str]:
    if value is None:
        return set()
    if isinstance(value, bool):  # which Python counts with, too
        return {"flag"}
    if isinstance(value, int) and -LONGEST <= value < LONGEST:
        return {"whole" if abs(value) <= EXACT else "long"}
    return {"number" if isinstance(value, float) else "text"}
