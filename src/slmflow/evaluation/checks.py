"""Scores of an answer by what its row demands of it: a pattern, a JSON schema, a number."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from referencing.jsonschema import EMPTY_REGISTRY

from slmflow.evaluation.data.example import Example

RELATIVE_TOLERANCE = 1e-9
MINUS = "\N{MINUS SIGN}"
FENCE = re.compile(
    r"^[ \t]*```(?:json)?[ \t]*\n(?P<inside>.*?)(?:^[ \t]*```|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(
    r"""
    (?<![\w^]) (?<!\d\.)                # no part of a word, a power or a version: H2O, m^2, 1.2.3
    (?P<sign> (?<![)\]}]) [-+\N{MINUS SIGN}] )?
    [$\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN}]?
    (?P<digits>
        (?: \d{1,3} (?P<apart> [,_'\u2019\xa0\u2009\u202f] ) \d{3}  # also narrow spaces
            (?: (?P=apart) \d{3} )* (?!\d)
          | \d+ )
        (?: \.\d+ )?
      | (?<!\.) \.\d+                   # .5, but not the last dot of "...42"
    )
    (?: [eE] (?P<exponent> [-+]?\d+ )
      | \s* (?: [x*\N{MULTIPLICATION SIGN}] | \\times ) \s* 10 \s* \^ \s* \{?
        (?P<power> [-+\N{MINUS SIGN}]?\d+ ) }? )?
    (?P<percent> \s?\\?% )?
    """,
    re.VERBOSE,
)


def regex(answer: str, example: Example) -> float | None:
    """Whether the row's pattern is found anywhere in the answer, spaces around it taken off:
    Python's ``re.search``, so ``^...$`` demands the whole answer."""
    if example.regex is None:
        return None
    return float(re.search(example.regex, answer.strip()) is not None)


def json_schema(answer: str, example: Example) -> float | None:
    """Whether the answer is JSON that the row's schema allows: the whole answer, or the first
    Markdown fence in it (```` ``` ```` or ```` ```json ````; it may lack its end, as where a stop
    text took it). JSON is RFC 8259's: no NaN. References to other documents are not fetched.
    """
    if example.json_schema is None:
        return None
    validator = _validator(dict(example.json_schema))
    return float(any(validator.is_valid(value) for value in _json_values(answer)))


def number(answer: str, example: Example) -> float | None:
    """Whether the last number in the answer is the row's, to a relative 1e-9.

    Read: ``-1,234.50``, ``$5``, ``.5``, ``1e-3``, ``1.5 x 10^3``, a typographic minus; thousands
    apart by comma, underscore, apostrophe or a thin space. ``12%`` is 12 and 0.12. A decimal
    comma is not read, a fraction is not divided (``1/2`` ends with 2), and digits inside a word
    (``H2O``) are no number.
    """
    if example.number is None:
        return None
    wanted = float(example.number)
    return float(
        any(math.isclose(value, wanted, rel_tol=RELATIVE_TOLERANCE) for value in _last(answer))
    )


def _validator(schema: dict[str, Any]) -> Validator:
    dialect = validator_for(schema, default=Draft202012Validator)
    return dialect(schema, registry=EMPTY_REGISTRY)


def _json_values(answer: str) -> Iterator[Any]:
    fence = FENCE.search(answer)
    for text in (answer, fence["inside"] if fence else None):
        if text is not None:
            try:
                yield json.loads(text.strip(), parse_constant=_refuse)
            except (ValueError, RecursionError):  # RecursionError: [[[[[[... without an end
                continue


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _last(answer: str) -> tuple[float, ...]:
    """What the last number may mean; empty without one."""
    every = list(NUMBER.finditer(answer))
    if not every:
        return ()
    found = every[-1]
    digits = re.sub(r"[^\d.]", "", found["digits"])
    sign = "-" if found["sign"] in ("-", MINUS) else ""
    exponent = (found["exponent"] or found["power"] or "0").replace(MINUS, "-")
    value = float(f"{sign}{digits}e{exponent}")
    return (value, value / 100) if found["percent"] else (value,)
