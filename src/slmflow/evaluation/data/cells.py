"""The cells of one row of a table, as CSV and Parquet hold them, become its fields."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from slmflow.evaluation.data.check import FIELDS, refuse_unknown
from slmflow.evaluation.data.raw import parse_json

TAG = "tag."
AS_JSON = ("messages", "json_schema", "tags")


def check_columns(columns: Iterable[str]) -> None:
    """Raises ``ValueError``."""
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise ValueError(f"column {column!r} stands there twice")
        seen.add(column)
    named = [column for column in seen if not (column.startswith(TAG) and column != TAG)]
    refuse_unknown("column", sorted(named), (*FIELDS, f"{TAG}<name>"))


def fields_from(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Empty cells are absent. Raises ``ValueError`` for texts that should be JSON.

    ``references`` is a JSON list where it begins with "[", else one right answer.
    """
    filled = {name: cell for name, cell in cells.items() if cell is not None and cell != ""}
    fields = {name: _value(name, cell) for name, cell in filled.items() if name[:4] != TAG}
    tags = {name.removeprefix(TAG): cell for name, cell in filled.items() if name[:4] == TAG}
    if tags:
        given = fields.get("tags", {})
        fields["tags"] = {**given, **tags} if isinstance(given, Mapping) else given
    return fields


def _value(name: str, cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    if name == "number":
        with suppress(ValueError):  # told as no number, which says more than no JSON
            return parse_json(cell)
    elif name in AS_JSON or (name == "references" and cell.lstrip().startswith("[")):
        try:
            return parse_json(cell)
        except ValueError as error:
            hint = "; one answer: in column reference" if name == "references" else ""
            raise ValueError(f"{name} {error}{hint}") from None
    return cell
