"""JSON Lines: an object a line, UTF-8."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from slmflow.evaluation.data.raw import RawRow, parse_json


def read_json_lines(path: Path) -> Iterator[RawRow]:
    """Lines end at ``\\n`` alone: texts may hold other breaks. Blank lines are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if content.strip():
                yield _row(number, content)


def _row(number: int, line: bytes) -> RawRow:
    place = f"line {number}"
    try:
        return RawRow(place, str(number), parse_json(line.decode().rstrip()))
    except UnicodeDecodeError as error:
        return RawRow(place, str(number), problem=f"is no UTF-8 at byte {error.start + 1}")
    except ValueError as error:
        return RawRow(place, str(number), problem=str(error))
