"""The report in a real browser: on a phone and a screen, in the dark, on paper."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from slmflow.evaluation.report.html import render_html
from tests.sample_evaluation import SCRIPT, sample, tiny
from tests.test_page import a_browser, a_page

ENOUGH = 4.5  # contrast of text, WCAG 2.2, 1.4.3
SEEN = 3.0  # contrast of a mark in a plot, WCAG 2.2, 1.4.11

TEXTS = """() => {
  const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "none";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = {};
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("title, desc")) continue;
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    found[`${ink} on ${back(element)}`] = walker.currentNode.data.trim().slice(0, 60);
  }
  return found;
}"""
"""Every pair of colours that a text has, with one such text."""

MARKS = """() => {
  const shapes = [...document.querySelectorAll(".plots svg use, .plots svg path")];
  const style = (shape) => getComputedStyle(shape);
  return [...new Set(shapes.flatMap((shape) => [style(shape).fill, style(shape).stroke]))];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_html(sample()), "utf-8")
    return path


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    """Opened; it must ask for nothing else and complain of nothing."""
    with browser.new_context() as context, a_page(context) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: asked.append(dialog.message))
        page.goto(file.as_uri())
        yield page
        assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]


def test_the_page_is_shown_and_hostile_texts_do_nothing(page: Page) -> None:
    expect(page).to_have_title("phi3-demo on held-out capitals: evaluation")
    expect(page.get_by_role("heading", level=1)).to_have_text("phi3-demo on held-out capitals")
    expect(page.locator(".text", has_text=SCRIPT).first).to_be_visible()
    assert page.locator("script, img, iframe").count() == 0


def test_the_verdict_stands_before_everything_else(page: Page) -> None:
    headings = page.get_by_role("heading", level=2).all_inner_texts()
    assert headings == [
        "Verdict",
        "Gate: refused",
        "Summary",
        "Quality",
        "Speed and memory",
        "Parity",
        "Slices",
        "Where the candidates differ most",
        "What failed",
        "How it was made",
    ]


@pytest.mark.parametrize("width", [320, 360, 768, 1280, 2560])
def test_the_page_never_scrolls_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    _open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll("figure, svg, h1, h2, h3, p, li, .text, pre")]
          .filter((it) => it.checkVisibility() && it.getBoundingClientRect().right > innerWidth + 1)
          .map((it) => it.outerHTML.slice(0, 80))"""
        )
        == []
    )


def test_plots_can_be_read_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    heights = page.evaluate(
        """() => [...document.querySelectorAll("svg text")]
          .filter((text) => text.textContent.trim())
          .map((text) => parseFloat(getComputedStyle(text).fontSize)
            * text.getScreenCTM().a)"""
    )
    assert len(heights) > 30
    assert min(heights) >= 9


def test_no_label_of_a_plot_is_cut(page: Page) -> None:
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert (
            page.evaluate(
                """() => [...document.querySelectorAll("svg text")].filter((text) => {
              const [box, frame] = [text, text.ownerSVGElement]
                .map((it) => it.getBoundingClientRect());
              return box.left < frame.left - 2 || box.right > frame.right + 2;
            }).map((text) => text.textContent.trim())"""
            )
            == []
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_and_mark_stands_out(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    _open_all(page)
    texts = page.evaluate(TEXTS)
    assert len(texts) > 8
    weak = {pair: text for pair, text in texts.items() if _contrast(*pair.split(" on ")) < ENOUGH}
    assert weak == {}
    back = _back(page)
    marks = [colour for colour in page.evaluate(MARKS) if colour not in ("none", back)]
    strong = [colour for colour in marks if _contrast(colour, back) >= SEEN]
    assert len(strong) >= 3  # a candidate each; the others are grid lines


def test_the_dark_is_dark_and_the_light_is_light(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    assert _luminance(_back(page)) > 0.9
    page.emulate_media(color_scheme="dark")
    assert _luminance(_back(page)) < 0.02


def test_paper_is_white_and_shows_what_was_folded(page: Page) -> None:
    folded = page.locator("details:not([open])")
    assert folded.count() > 3
    page.emulate_media(media="print", color_scheme="dark")
    assert _luminance(_back(page)) > 0.9
    for inside in folded.locator("dl, table").all():
        box = inside.bounding_box()
        assert box is not None
        assert box["height"] > 20
    page.set_viewport_size({"width": 690, "height": 976})  # A4 without its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    pdf = page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 5


def test_a_wide_table_scrolls_in_its_own_box_by_keyboard_too(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    box = page.locator(".scroll", has_text="first p99").first
    assert box.evaluate("it => it.scrollWidth > it.clientWidth")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("it => it.scrollLeft > 0", arg=box.element_handle())


def test_numbers_stand_under_each_other(page: Page) -> None:
    cells = page.locator("td.number")
    assert cells.count() > 50
    style = cells.first.evaluate(
        "it => [getComputedStyle(it).textAlign, getComputedStyle(it).fontVariantNumeric]"
    )
    assert style[0] == "right"
    assert "tabular-nums" in style[1]


def test_who_cannot_see_the_page_finds_tables_and_plots_by_name(page: Page) -> None:
    expect(page.get_by_role("table", name="Conditions of the gate production")).to_be_visible()
    expect(page.get_by_role("img", name="Time to the first token")).to_be_visible()
    expect(page.get_by_role("rowheader", name="custom_onnx v2").first).to_be_visible()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("[tabindex]")]
          .filter((it) => it.scrollWidth > it.clientWidth && !it.matches("pre, .text")
            && !it.ariaLabel).length"""
    )
    assert unnamed == 0


def test_a_text_that_runs_from_right_to_left_begins_at_the_right(page: Page) -> None:
    _open_all(page)
    text = page.locator("dd .text", has_text="\u05d4\u05d1\u05d9\u05e8\u05d4").nth(1)
    assert text.evaluate("it => getComputedStyle(it).direction") == "rtl"


def test_next_to_nothing_is_a_page_too(browser: Browser) -> None:
    with (
        browser.new_context(viewport={"width": 360, "height": 800}) as context,
        a_page(context) as page,
    ):
        page.set_content(render_html(tiny()))
        expect(page.get_by_role("heading", level=2)).to_have_text(
            ["Verdict", "Summary", "Quality", "Speed and memory", "How it was made"]
        )
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def _open_all(page: Page) -> None:
    page.evaluate("() => document.querySelectorAll('details').forEach((it) => it.open = true)")


def _back(page: Page) -> str:
    back: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return back


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    darker, lighter = sorted(map(_luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    """WCAG 2.2: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    found = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour)
    assert found is not None, colour
    parts = [int(part) / 255 for part in found.groups()]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
