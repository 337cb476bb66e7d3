"""Templates of pages that ask for nothing else and run no script."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from slmflow.drawing import units


def environment(folder: Path, **more: Any) -> Environment:
    """Of the templates in the folder; texts are shown as they are and can do nothing. ``more`` is
    what templates can call or name beside ``units``, ``breakable`` and ``svg``."""
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "units": units,
        "breakable": _breakable,
        "svg": lambda plot: Markup(plot.svg),
        **more,
    }
    return made


def _breakable(text: str) -> Markup:
    """A name that may go on in the next line after a low line or a slash."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/])", text))
