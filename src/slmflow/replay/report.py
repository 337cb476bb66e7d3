"""The rerun as one HTML file: it asks for nothing else and runs no script."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from slmflow.drawing import STYLE_SHEET, units
from slmflow.drawing.page import environment
from slmflow.replay.circumstances import MEANINGS
from slmflow.replay.results import Finding, Report, Sameness
from slmflow.replay.show import FIRST, verdict_words

TONES = {
    Sameness.different: "bad",
    Sameness.unknown: "unsure",
    Sameness.equal: "good",
    Sameness.identical: "good",
    Sameness.noise: "",
}
"""How each is marked on the page, in the order in which they are told."""


def render_html(report: Report) -> str:
    """The whole page. What was recorded is shown as it is and can do nothing."""
    page = (
        _environment()
        .get_template("rerun.html.j2")
        .render(
            report=report,
            verdict=verdict_words(report),
            tone="bad" if report.error else TONES[report.verdict],
            results=_ordered(report.findings),
            varying=report.of_sameness(Sameness.noise),
            tones=TONES,
            meanings={key: text for key, text in MEANINGS.items() if report.circumstances.of(key)},
            css=Markup(STYLE_SHEET.read_text()),
        )
    )
    return units.printable(page)


def _ordered(findings: Sequence[Finding]) -> list[Finding]:
    """What differs first; times and the like apart."""
    kinds = [kind for kind in TONES if kind is not Sameness.noise]
    leading = sorted(findings, key=lambda one: one.what not in FIRST)
    return [one for kind in kinds for one in leading if one.sameness is kind]


@cache
def _environment() -> Environment:
    return environment(Path(__file__).parent)
