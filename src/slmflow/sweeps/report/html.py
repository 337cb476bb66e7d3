"""The sweep as one HTML file: it asks for nothing else and runs no script."""

from functools import cache
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from slmflow.drawing import STYLE_SHEET, svg, units
from slmflow.drawing.page import environment
from slmflow.sweeps.report import table, words
from slmflow.sweeps.report.front import draw_front
from slmflow.sweeps.report.parallel import draw_parallel
from slmflow.sweeps.report.plot import Role
from slmflow.sweeps.results import SweepResult

FOLDER = Path(__file__).parent
OPEN_TROUBLES = 5  # messages; the others open on a click


def render_html(result: SweepResult) -> str:
    """The whole page. What was typed and what failed is shown as it is and can do nothing."""
    with svg.style():
        plots = [plot for plot in (draw_parallel(result), draw_front(result)) if plot is not None]
    page = (
        _environment()
        .get_template("sweep.html.j2")
        .render(
            sweep=result,
            plots=plots,
            points=table.points(result),
            everything=table.everything(result),
            troubles=words.troubles(result),
            open_troubles=OPEN_TROUBLES,
            css=Markup(STYLE_SHEET.read_text()),
        )
    )
    return units.printable(page)


@cache
def _environment() -> Environment:
    return environment(
        FOLDER,
        words=words,
        signs={
            Role.best: ("mark-0", "\N{BLACK DIAMOND}"),
            Role.front: ("mark-2", "\N{BLACK CIRCLE}"),
            Role.other: ("muted", "\N{BLACK CIRCLE}"),
            Role.unfinished: ("mark-1", "\N{BOX DRAWINGS LIGHT DOUBLE DASH HORIZONTAL}"),
        },
    )
