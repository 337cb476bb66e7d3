"""The same facts for a comment on a pull request. Raw, its tables fit a terminal of 100 columns."""

import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len

from slmflow.drawing import units
from slmflow.evaluation.report import speed, tables, words
from slmflow.evaluation.report.tables import Cell, Table
from slmflow.evaluation.results import Comparison, Decision, Evaluation, Row

WIDTH = 100  # columns of a raw table
FIRST, OTHER = 34, 58  # columns of a cell: the two and their frame fit into a table
TEXT = 300  # characters of a question or an answer
SHOWN_ROWS = 10


def render_markdown(evaluation: Evaluation) -> str:
    """GitHub's Markdown. Texts of the rows stand in code spans, so that they format nothing."""
    sections = [
        f"## Evaluation: {escape(evaluation.name)}",
        _facts(evaluation),
        _list(escape(said) + "." for said in words.verdicts(evaluation)),
        _gate(evaluation.decision) if evaluation.decision is not None else "",
        "### Summary",
        table(tables.summary(evaluation)),
        *_quality(evaluation),
        *_speed(evaluation),
        *_parity(evaluation.comparisons),
        *_failed(evaluation),
        _folded("Slices", _slices(evaluation)),
        _folded("Where the candidates differ most", _rows(evaluation)),
        _folded("Models, environment and settings", _about(evaluation)),
    ]
    return units.printable("\n\n".join(filter(None, sections)) + "\n")


def table(given: Table) -> str:
    """One wider than ``WIDTH`` goes on in another, with the first column again."""
    columns = [
        [_fitting(title, FIRST if at == 0 else OTHER)]
        + [
            _fitting(row[at].text, FIRST) if at == 0 else _fitting(_joined(row[at]), OTHER)
            for row in given.rows
        ]
        for at, title in enumerate(given.columns)
    ]
    parts: list[list[int]] = [[]]
    for at in range(1, len(columns)):
        if parts[-1] and _width(columns, [0, *parts[-1], at]) > WIDTH:
            parts.append([])
        parts[-1].append(at)
    drawn = (_draw(columns, [0, *part], given.texts) for part in parts)
    return f"{escape(given.caption)}:\n\n" + "\n\n".join(drawn)


def escape(text: str) -> str:
    """As text on one line: no formatting, no links, nobody mentioned."""
    line = " ".join(text.split())
    line = re.sub(r"[\\`*\[\]<>|~&$]", r"\\\g<0>", line)
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # exact_match is no emphasis
    line = re.sub(r"(?i):(?=//)|(?<=www)\.", r"\\\g<0>", line)
    line = re.sub(r"^([-+=#])(?=[-=#\s]|$)|^(\d+)(?=[.)](\s|$))", r"\2\\\1", line)  # no list
    return re.sub(r"[@#](?=\w)", "\\g<0>\N{ZERO WIDTH SPACE}", line)


def code(text: str) -> str:
    """As a code span, white space as single blanks."""
    line = units.clip(" ".join(text.split()), TEXT)
    if not line:
        return "*empty*"
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    return (
        f"{fence} {line} {fence}"
        if line.startswith("`") or line.endswith("`")
        else (f"{fence}{line}{fence}")
    )


def _facts(evaluation: Evaluation) -> str:
    dataset = evaluation.dataset
    return (
        f"{words.moment(evaluation.started)}, {units.duration(evaluation.seconds)}. "
        f"{escape(dataset.name)}, {words.rows(dataset)}, digest {code(dataset.digest[:12])}. "
        f"Run {code(evaluation.run_id)}."
    )


def _gate(decision: Decision) -> str:
    state = "passed" if words.gate_passed(decision) else "refused"
    conditions = (
        f"{'yes' if outcome.holds else '**no**'}, {escape(candidate.label)}: "
        f"{escape(outcome.words)}"
        for candidate in decision.candidates
        for outcome in candidate.outcomes
    )
    return f"### Gate {escape(decision.gate)}: {state}\n\n{escape(words.gate(decision))}.\n\n" + (
        _list(conditions)
    )


def _quality(evaluation: Evaluation) -> list[str]:
    quality = tables.quality(evaluation)
    if len(quality.columns) == 1:
        return ["### Quality", words.NO_QUALITY]
    found = [tables.differences(evaluation, one) for one in evaluation.comparisons]
    return ["### Quality", table(quality), *(table(one) for one in found if one.rows)]


def _speed(evaluation: Evaluation) -> list[str]:
    by_setting = speed.tables(evaluation)
    found = [one for one in (speed.ratios(evaluation), speed.loading(evaluation)) if one]
    notes = [
        words.rounds(evaluation),
        " ".join([words.COLUMNS, speed.percentiles_note(evaluation)]).rstrip(),
    ]
    told = [*notes, *map(table, by_setting)] if by_setting else [words.NO_SPEED]
    missing = [_list(f"{escape(said)}." for said in words.not_measured(evaluation))]
    return ["### Speed and memory", *told, *filter(None, missing), *map(table, found)]


def _parity(comparisons: Sequence[Comparison]) -> list[str]:
    found = [
        f"**{escape(one.label)}**, {one.parity.cause.value}: {escape(one.parity.words)}\n\n"
        + _list(f"{name}: {escape(value)}" for name, value in words.parity_facts(one))
        for one in comparisons
        if one.parity is not None
    ]
    return ["### Parity", *found] if found else []


def _failed(evaluation: Evaluation) -> list[str]:
    unanswered = [words.unanswered(one, evaluation) for one in evaluation.candidates]
    failures = tables.failures(evaluation)
    told = [
        _list(f"{escape(said)}." for said in unanswered if said),
        table(failures) if failures is not None else "",
        words.FAILED if failures is not None else "",
    ]
    return ["### What failed", *told] if any(told) else []


def _slices(evaluation: Evaluation) -> list[str]:
    found = [table(one) for one in tables.slices(evaluation)]
    return [words.SLICES, *found] if found else []


def _rows(evaluation: Evaluation) -> list[str]:
    return [_row(row, evaluation) for row in evaluation.disagreements[:SHOWN_ROWS]]


def _row(row: Row, evaluation: Evaluation) -> str:
    lines = [f"{code(row.id)} {code(row.question)}"]
    lines += [f"reference: {code(reference)}" for reference in row.references]
    for one in evaluation.candidates:
        answer = code(row.answers[one.label]) if one.label in row.answers else "**no answer**"
        scores = words.scores(row, one.label)
        lines.append(f"{escape(one.label)}: {answer}{f' ({escape(scores)})' if scores else ''}")
    return "- " + "\n  - ".join(lines)


def _about(evaluation: Evaluation) -> list[str]:
    environment = tables.facts("Machine and versions", ("name", "value"), evaluation.environment)
    settings = tables.facts("Settings", ("key", "value"), evaluation.settings)
    return [
        table(tables.models(evaluation)),
        *(table(t) for t in (environment, settings) if t.rows),
    ]


def _folded(title: str, parts: Sequence[str]) -> str:
    if not parts:
        return ""
    return "\n\n".join([f"<details>\n<summary>{title}</summary>", *parts, "</details>"])


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _joined(cell: Cell) -> str:
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text


def _fitting(text: str, width: int) -> str:
    """Escaped, and cut until that fits."""
    length = min(len(text), width)
    while cell_len(shown := escape(units.clip(text, length))) > width:
        length -= 1
    return shown


def _width(columns: Sequence[Sequence[str]], chosen: Sequence[int]) -> int:
    return sum(max(map(cell_len, columns[at])) + 3 for at in chosen) + 1


def _draw(columns: Sequence[Sequence[str]], chosen: Sequence[int], texts: frozenset[int]) -> str:
    padded = []
    for at in chosen:
        width = max(3, *map(cell_len, columns[at]))
        left = at == 0 or at in texts
        rule = "-" * width if left else "-" * (width - 1) + ":"
        cells = [
            cell + blanks if left else blanks + cell
            for cell in columns[at]
            for blanks in [" " * (width - cell_len(cell))]
        ]
        padded.append([cells[0], rule, *cells[1:]])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*padded, strict=True))
