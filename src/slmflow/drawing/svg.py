"""A matplotlib figure as SVG inside an HTML page: text stays text, colours follow the page."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"

# Stand-ins for the page's colours: matplotlib knows no variables of CSS.
TEXT = "#000001"
MUTED = "#000002"
LINE = "#000003"
BACK = "#000004"
MARKS = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
VARIABLES = {
    TEXT: "var(--text)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    BACK: "var(--back)",
    **{mark: f"var(--mark-{index})" for index, mark in enumerate(MARKS)},
}

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "slmflow",  # the same ids every time
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.linewidth": 0.8,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
    "text.color": TEXT,
}


def inline(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an ``<svg>`` element whose ids begin with ``name``, read out as an image."""
    buffer = StringIO()
    with warnings.catch_warnings():
        # The browser has the letters that the font of the layout lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _rename(root, name)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for at, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(at, element)
    return ElementTree.tostring(root, encoding="unicode")


@contextmanager
def style() -> Iterator[None]:
    """The report's look, whatever the user's matplotlibrc says; figures are made inside of it."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def _rename(root: ElementTree.Element, name: str) -> None:
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        if "id" in element.attrib:
            element.attrib["id"] = f"{name}-{element.attrib['id']}"
        if HREF in element.attrib:
            element.attrib["href"] = element.attrib.pop(HREF).replace("#", f"#{name}-", 1)
        for key, value in element.attrib.items():
            element.attrib[key] = value.replace("url(#", f"url(#{name}-")
        if "style" in element.attrib:
            element.attrib["style"] = _coloured(element.attrib["style"])


def _coloured(css: str) -> str:
    return re.sub(r"#0000[01]\d", lambda match: VARIABLES.get(match[0], match[0]), css)
