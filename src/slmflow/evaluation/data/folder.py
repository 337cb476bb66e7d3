"""A folder of prompts: a text file each, the right answer in another file beside it."""

from collections.abc import Iterator
from pathlib import Path

from slmflow.evaluation.data.raw import RawRow

PROMPTS = (".txt", ".md")
EXPECTED = ".expected.txt"


def read_folder(path: Path) -> Iterator[RawRow]:
    """``*.txt`` and ``*.md`` by name, not those of folders in it; ``a.expected.txt`` answers
    ``a.txt``. The line break that editors put at the end is no part of a text."""
    names = sorted(file.name for file in path.iterdir() if _is_text(file))
    for name in names:
        if name.endswith(EXPECTED):
            stem = name.removesuffix(EXPECTED)
            if not any(f"{stem}{ending}" in names for ending in PROMPTS):
                wanted = " or ".join(f"{stem}{ending}" for ending in PROMPTS)
                yield RawRow(name, name, problem=f"has no prompt beside it ({wanted})")
        else:
            yield _row(path / name)


def _is_text(file: Path) -> bool:
    return file.suffix in PROMPTS and not file.name.startswith(".") and file.is_file()


def _row(file: Path) -> RawRow:
    expected = file.with_name(f"{file.stem}{EXPECTED}")
    try:
        fields = {"prompt": _text(file)}
        if expected.is_file():
            fields["reference"] = _text(expected)
    except UnicodeDecodeError as error:
        return RawRow(file.name, file.name, problem=f"is no UTF-8 at byte {error.start + 1}")
    return RawRow(file.name, file.name, fields)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig").removesuffix("\n")
