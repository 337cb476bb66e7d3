"""The evaluation as one HTML file: it asks for nothing else and runs no script."""

from functools import cache
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from slmflow.drawing import STYLE_SHEET, svg, units
from slmflow.drawing.page import environment
from slmflow.evaluation.report import plots, speed, tables, words
from slmflow.evaluation.report.diff import diff
from slmflow.evaluation.results import Evaluation

FOLDER = Path(__file__).parent
GLYPHS = ("\u25cf", "\u25a0", "\u25c6", "\u25b2", "\u25bc", "\u271a")  # as plots.MARKERS
OPEN_ROWS = 3  # of those where the candidates differ; the others open on a click


def render_html(evaluation: Evaluation) -> str:
    """The whole page. Texts of the rows are shown as they are and can do nothing."""
    with svg.style():
        drawn = {
            "quality_plots": [plots.quality(evaluation), plots.differences(evaluation)],
            "speed_plots": [plots.first_token(evaluation), plots.inter_token(evaluation)],
            "pareto": plots.pareto(evaluation),
        }
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            e=evaluation,
            summary=tables.summary(evaluation),
            quality=tables.quality(evaluation),
            differences=[tables.differences(evaluation, one) for one in evaluation.comparisons],
            speed_tables=speed.tables(evaluation),
            loading=speed.loading(evaluation),
            ratios=speed.ratios(evaluation),
            percentiles_note=speed.percentiles_note(evaluation),
            slices=tables.slices(evaluation),
            failures=tables.failures(evaluation),
            unanswered=[
                said for one in evaluation.candidates if (said := words.unanswered(one, evaluation))
            ],
            gate_table=tables.gate(evaluation, evaluation.decision)
            if evaluation.decision
            else None,
            models=tables.models(evaluation),
            environment=tables.facts(
                "Machine and versions", ("name", "value"), evaluation.environment
            ),
            settings=tables.facts("Settings", ("key", "value"), evaluation.settings),
            css=Markup(STYLE_SHEET.read_text()),
            open_rows=OPEN_ROWS,
            **drawn,
        )
    )
    return units.printable(page)


@cache
def _environment() -> Environment:
    return environment(
        FOLDER,
        words=words,
        diff=diff,
        name_cell=tables.name_cell,
        glyphs=GLYPHS,
        tones=tables.TONES,
    )
