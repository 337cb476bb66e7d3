"""The findings: a table that fits a terminal, or JSON."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from rich.markup import escape

from slmflow import console
from slmflow.doctor.finding import Finding, Level

SIGNS = {
    Level.ok: "[green]✓[/]",
    Level.warning: "[yellow]![/]",
    Level.failure: "[red]✗[/]",
}
NAME = 10  # columns


def show(findings: Sequence[Finding]) -> None:
    console.console().print()
    for finding in findings:
        _show_one(finding)
    count = {level: sum(f.level is level for f in findings) for level in Level}
    console.console().print(
        f"\n{count[Level.ok]} ok, {_number(count[Level.warning], 'warning')}, "
        f"{_number(count[Level.failure], 'failure')}"
    )


def as_json(findings: Sequence[Finding], seconds: float) -> str:
    """``{"format": 1, "ok": no failure, "seconds": ..., "findings": [{"check", "level", ...}]}``"""
    return json.dumps(
        {
            "format": 1,
            "ok": not any(finding.level is Level.failure for finding in findings),
            "seconds": round(seconds, 3),
            "findings": [asdict(finding) for finding in findings],
        },
        indent=1,
    )


def _show_one(finding: Finding) -> None:
    """Text is wrapped; a command is not, so that it can be copied."""
    indent = " " * (NAME + 3)
    lines = textwrap.wrap(
        f"{finding.check:<{NAME}} {finding.found}",
        console.WIDTH - 2,
        subsequent_indent=indent[2:],
        break_on_hyphens=False,
    )
    first, *others = lines
    out = console.console()
    out.print(f"{SIGNS[finding.level]} {escape(first)}")
    for line in others:
        out.print(escape(f"  {line}"))
    if finding.mend and finding.level is not Level.ok:
        out.print(f"{indent}[dim]→[/] [bold]{escape(finding.mend)}[/]")


def _number(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")
