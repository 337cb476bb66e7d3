"""The input divided into parts: Parquet files beside the output, the same for every engine."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from slmflow.errors import DataError
from slmflow.prediction.part import ROW, STAGED_COLUMNS
from slmflow.prediction.places import staged, write_whole
from slmflow.prediction.reading.batches import read_batches
from slmflow.prediction.reading.columns import file_schemas, output_names, unified
from slmflow.prediction.reading.files import InputFile


@dataclass(frozen=True)
class Staged:
    part_rows: list[int]  # of each part
    renamed: dict[str, str]  # own columns whose name an answer has, to what they are called now


def stage(files: Sequence[InputFile], output: str, part_rows: int) -> Staged:
    """Raises ``DataError`` for files that cannot be read, and where there are no rows."""
    schemas = file_schemas(files)
    schema = unified(files, schemas)
    names = output_names(schema.names)
    batches = (
        batch
        for file, columns in zip(files, schemas, strict=True)
        for batch in read_batches(file, columns, schema)
    )
    counts: list[int] = []
    before = 0
    for table in divided(batches, part_rows):
        # By position: an own column may be called as one of the others.
        renamed = table.rename_columns([*names.values(), *STAGED_COLUMNS])
        rows = pa.array(range(before, before + table.num_rows), pa.int64())
        _write(renamed.add_column(0, ROW, rows), staged(output, len(counts)))
        counts.append(table.num_rows)
        before += table.num_rows
    if not counts:
        raise DataError(f"the input has no rows ({', '.join(file.name for file in files)})")
    return Staged(counts, {own: name for own, name in names.items() if own != name})


def divided(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Tables of so many rows each, the last one of what is left."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= rows:
            whole = pa.Table.from_batches(held)
            yield whole.slice(0, rows)
            rest = whole.slice(rows)
            held, count = rest.to_batches(), rest.num_rows
    if count:
        yield pa.Table.from_batches(held)


def _write(table: pa.Table, url: str) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    write_whole(url, sink.getvalue())
