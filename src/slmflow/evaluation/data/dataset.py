"""An evaluation set: opened and checked once, then read from its source as often as needed."""

import hashlib
import heapq
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmflow.errors import DataError
from slmflow.evaluation.data.check import example_from
from slmflow.evaluation.data.example import Example
from slmflow.evaluation.data.origin import Origin, find_origin
from slmflow.evaluation.data.raw import RawRow
from slmflow.evaluation.results import DatasetFacts

SHOWN_ERRORS = 20


@dataclass(frozen=True)
class Dataset:
    """The rows that will be asked, in the order of their source; none of them is held."""

    name: str
    source: str  # as the user wrote it
    digest: str  # SHA-256 of the rows that will be asked
    rows: int
    of: int  # rows that the source has
    seed: int | None  # of the sample; None: the first rows
    origin: Origin
    chosen: Sequence[int]  # numbers of the rows, from 0, ascending

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Example]:
        """Raises ``DataError`` before the last row where the source gives other rows than it did
        when the set was opened."""
        digest = hashlib.sha256()
        number = 0
        try:
            for number, example in enumerate(_asked(self.origin, self.chosen), start=1):
                digest.update(canonical(example))
                if number == self.rows and digest.hexdigest() != self.digest:
                    raise ValueError("has other rows")
                yield example
            if number != self.rows:
                raise ValueError(f"has no row {self.chosen[number] + 1}")
        except (OSError, ValueError) as error:
            raise DataError(
                f"data.path={self.source} was changed while it was in use ({error}); "
                "run the command again, and leave it alone until the end"
            ) from None

    @property
    def facts(self) -> DatasetFacts:
        return DatasetFacts(self.name, self.source, self.digest, self.rows, self.of, self.seed)


def open_dataset(name: str, path: Path | str, limit: int | None, seed: int | None) -> Dataset:
    """Every row is checked, whatever is asked.

    Without ``limit`` all rows are asked. With one and a ``seed``: that many drawn without
    replacement; without a seed: the first. Raises ``DataError`` that lists the bad rows.
    """
    source = str(path)
    origin = find_origin(source)
    try:
        ids = _check(origin, source)
        chosen = _choose(ids, limit, seed)
        digest = hashlib.sha256()
        for example in _asked(origin, chosen):
            digest.update(canonical(example))
    except OSError as error:
        raise DataError(f"data.path={source} cannot be read: {error.strerror or error}") from None
    return Dataset(name, source, digest.hexdigest(), len(chosen), len(ids), seed, origin, chosen)


def canonical(example: Example) -> bytes:
    """One spelling a row, whatever format it came from."""
    return json.dumps(example.as_row(), sort_keys=True).encode() + b"\n"


def _check(origin: Origin, source: str) -> Collection[str]:
    """The ids of all rows, in order."""
    places: dict[str, str] = {}
    problems: list[str] = []
    for raw in origin.read():
        try:
            example = _example(raw)
            if example.id in places:
                raise ValueError(f"its id {example.id!r} is that of {places[example.id]}, too")
            places[example.id] = raw.place
        except ValueError as error:
            problems.append(f"{raw.place}: {error}")
    if problems:
        more = len(problems) - SHOWN_ERRORS
        tail = [f"and {more} more"] if more > 0 else []
        raise DataError("\n  ".join([f"{source}:", *problems[:SHOWN_ERRORS], *tail]))
    if not places:
        raise DataError(f"data.path={source} has no rows")
    return places.keys()


def _choose(ids: Collection[str], limit: int | None, seed: int | None) -> Sequence[int]:
    """Each row draws a lot from the seed and its id, and the lowest are taken.

    So a smaller sample is part of a larger one, and rows that are added or moved leave the others'
    lots alone.
    """
    if limit is None or limit >= len(ids) or seed is None:
        return range(len(ids))[:limit]
    lots = (
        (hashlib.sha256(f"{seed} {name}".encode()).digest(), number)
        for number, name in enumerate(ids)
    )
    return sorted(number for _, number in heapq.nsmallest(limit, lots))


def _asked(origin: Origin, chosen: Sequence[int]) -> Iterator[Example]:
    wanted = iter(chosen)
    next_wanted = next(wanted, -1)
    for number, raw in enumerate(origin.read()):
        if number == next_wanted:
            yield _example(raw)
            next_wanted = next(wanted, -1)
            if next_wanted < 0:
                return


def _example(raw: RawRow) -> Example:
    if raw.problem is not None:
        raise ValueError(raw.problem)
    return example_from(raw.fields, raw.number)
