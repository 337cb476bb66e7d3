"""The chat page in a real browser, against a server that the test plays."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    expect,
    sync_playwright,
)

from tests.fake_openai import MODEL, FakeServer, end, event, piece, refusal

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
REFUSED = "Failed to load resource"  # what a browser says of every answer that is an error
HARD = "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{EURO SIGN} \N{SLIGHTLY SMILING FACE}"


# The steps of a person at the page. They hold for any server.


@contextmanager
def a_browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and "CI" in os.environ:
        pytest.fail("no browser: run tests/install_chromium.sh")
    if found is None:
        pytest.skip("no browser: run tests/install_chromium.sh")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def a_page(context: BrowserContext) -> Iterator[Page]:
    """A page that must neither throw, nor complain, nor break its Content-Security-Policy."""
    page = context.new_page()
    complaints: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(REFUSED):
            complaints.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert complaints == []


def ask(page: Page, text: str) -> Locator:
    """Send a question; its turn."""
    before = page.get_by_role("article").count()
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")
    return page.get_by_role("article").nth(before)


def answer_of(turn: Locator) -> Locator:
    return turn.locator(".answer")


def facts_of(turn: Locator) -> Locator:
    return turn.locator(".facts")


def edit_and_send_again(page: Page, turn: Locator, text: str) -> Locator:
    turn.get_by_role("button", name="Edit and send again").click()
    return ask(page, text)


# The tests.


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: FakeServer) -> Iterator[Page]:
    """Made before the server is stopped; a test opens it itself: ``page.goto("/")``."""
    with (
        browser.new_context(base_url=server.url, reduced_motion="reduce") as context,
        a_page(context) as page,
    ):
        page.set_default_timeout(10_000)
        yield page


@pytest.fixture
def opened(page: Page) -> Page:
    page.goto("/")
    expect(page.locator("#model")).to_have_text(MODEL)
    return page


def test_an_answer_appears_as_it_comes(opened: Page, server: FakeServer) -> None:
    turn = ask(opened, "What is the capital of Spain?")
    expect(opened.get_by_role("button", name="Stop")).to_be_visible()
    server.write(piece("Mad"))
    expect(answer_of(turn)).to_have_text("Mad")
    server.write(piece("rid"))
    expect(answer_of(turn)).to_have_text("Madrid")
    expect(facts_of(turn)).to_be_empty()
    server.write(end(completion_tokens=3))
    expect(facts_of(turn)).to_have_text(
        re.compile(
            r"finished · 12 prompt tokens · 3 completion tokens · first token after \d+\.\d\d s"
            r" · [\d.,]+ tokens/s"
        )
    )
    expect(opened.get_by_role("button", name="Send", exact=True)).to_be_visible()


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=repr)
def test_a_chunk_of_the_network_may_end_anywhere(
    opened: Page, server: FakeServer, line_end: bytes
) -> None:
    hello = event({"choices": [{"delta": {"content": HARD}}]}).replace(b"\n", line_end)
    turn = ask(opened, "Hello?")
    rest = b""
    for cut in range(1, len(hello)):
        # The end of one answer's piece, which shows, and the beginning of the next.
        server.write(rest + hello[:cut])
        expect(answer_of(turn)).to_have_text(HARD * (cut - 1))
        rest = hello[cut:]
    server.write(rest + end())
    expect(answer_of(turn)).to_have_text(HARD * (len(hello) - 1))
    expect(facts_of(turn)).to_contain_text("finished")


def test_comments_and_other_fields_of_the_stream_are_no_text(
    opened: Page, server: FakeServer
) -> None:
    turn = ask(opened, "Hello?")
    server.write(b": ping\n\nevent: message\nid: 1\n" + piece("Yes"), b": ping\n\n" + end())
    expect(facts_of(turn)).to_contain_text("finished")
    expect(answer_of(turn)).to_have_text("Yes")


def test_what_a_model_says_is_text_and_never_part_of_the_page(
    opened: Page, server: FakeServer
) -> None:
    says = "<img src=x onerror=alert(1)> <b>bold</b> &amp;\n\n  two lines below"
    turn = ask(opened, says)
    server.write(piece(says), end())
    expect(facts_of(turn)).to_contain_text("finished")
    assert answer_of(turn).text_content() == says
    assert turn.locator(".question").text_content() == says


@pytest.mark.parametrize(
    ("typed", "reason", "words"),
    [
        ("", "length", "cut at max_tokens ·"),
        ("3", "length", "cut at max_tokens ·"),
        ("40", "length", "cut at the model's length limit ·"),
        ("", "content_filter", "held back by a content filter ·"),
        ("", "something_new", "something_new ·"),
    ],
)
def test_why_an_answer_ended_is_said(
    opened: Page, server: FakeServer, typed: str, reason: str, words: str
) -> None:
    opened.get_by_label("max_tokens").fill(typed)
    turn = ask(opened, "Count.")
    server.write(piece("1, 2"), end(reason, completion_tokens=3))
    expect(facts_of(turn)).to_contain_text(words)


def test_an_empty_field_is_not_sent(opened: Page, server: FakeServer) -> None:
    opened.get_by_label("System message").fill("  ")
    opened.get_by_label("stop").fill("\n\n")
    turn = ask(opened, "Hello?")
    server.write(end())
    expect(facts_of(turn)).to_contain_text("finished")
    assert server.asked == [
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Hello?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_parameters_are_sent_as_typed(opened: Page, server: FakeServer) -> None:
    typed = {"temperature": "0", "top_p": "0.95", "max_tokens": "7", "seed": "11"}
    for name, value in typed.items():
        opened.get_by_label(name).fill(value)
    opened.get_by_label("stop").fill("END\n\n then ")
    opened.get_by_label("System message").fill("Be brief.")
    turn = ask(opened, "  Hello?\n")
    server.write(end())
    expect(facts_of(turn)).to_contain_text("finished")
    (sent,) = server.asked
    assert {name: sent[name] for name in typed} == {
        "temperature": 0, "top_p": 0.95, "max_tokens": 7, "seed": 11
    }  # fmt: skip
    assert sent["stop"] == ["END", " then "]
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Hello?\n"},
    ]


def test_a_number_that_is_none_is_pointed_at_and_nothing_is_sent(
    opened: Page, server: FakeServer
) -> None:
    opened.get_by_label("temperature").press_sequentially("1e")
    opened.get_by_text("Settings").click()  # folded away
    ask(opened, "Hello?")
    expect(opened.get_by_label("temperature")).to_be_focused()
    expect(opened.get_by_label("Your message")).to_have_value("Hello?")
    assert server.asked == []


def test_a_conversation_is_sent_as_a_whole_until_a_new_one_begins(
    opened: Page, server: FakeServer
) -> None:
    first = ask(opened, "Spain?")
    server.write(piece("Madrid"), end())
    expect(facts_of(first)).to_contain_text("finished")
    second = ask(opened, "And France?")
    server.write(piece("Paris"), end())
    expect(facts_of(second)).to_contain_text("finished")
    opened.get_by_role("button", name="New conversation").click()
    expect(opened.get_by_role("article")).to_have_count(0)
    third = ask(opened, "Italy?")
    server.write(piece("Rome"), end())
    expect(facts_of(third)).to_contain_text("finished")
    said = [[message["content"] for message in sent["messages"]] for sent in server.asked]
    assert said == [["Spain?"], ["Spain?", "Madrid", "And France?"], ["Italy?"]]
    roles = [message["role"] for message in server.asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"]


def by_click(page: Page) -> None:
    page.get_by_role("button", name="Stop").click()


def by_key(page: Page) -> None:
    page.keyboard.press("Escape")


@pytest.mark.parametrize("stop", [by_click, by_key])
def test_stop_keeps_what_was_said_and_ends_the_request(
    opened: Page, server: FakeServer, stop: Callable[[Page], None]
) -> None:
    turn = ask(opened, "Tell me a story.")
    server.write(piece("Once upon"))
    expect(answer_of(turn)).to_have_text("Once upon")
    stop(opened)
    expect(facts_of(turn)).to_contain_text("stopped by you")
    assert server.hung_up.wait(10)
    expect(answer_of(turn)).to_have_text("Once upon")
    expect(opened.get_by_label("Your message")).to_be_focused()
    turn = ask(opened, "Go on.")
    server.write(piece(" a time"), end())
    expect(facts_of(turn)).to_contain_text("finished")
    said = [message["content"] for message in server.asked[1]["messages"]]
    assert said == ["Tell me a story.", "Once upon", "Go on."]


def test_a_question_stopped_before_any_answer_can_be_asked_again(
    opened: Page, server: FakeServer
) -> None:
    turn = ask(opened, "Tell me a story.")
    by_click(opened)
    turn = edit_and_send_again(opened, turn, "Tell me a joke.")
    assert server.hung_up.wait(10)
    server.write(piece("Knock"), end())
    expect(facts_of(turn)).to_contain_text("finished")
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "Tell me a joke."}]


def test_a_new_conversation_ends_the_answer_under_way(opened: Page, server: FakeServer) -> None:
    ask(opened, "Tell me a story.")
    opened.get_by_role("button", name="New conversation").click()
    assert server.hung_up.wait(10)
    turn = ask(opened, "Spain?")
    server.write(piece("Madrid"), end())
    expect(facts_of(turn)).to_contain_text("finished")
    expect(opened.get_by_role("article")).to_have_count(1)


def test_a_refused_question_is_kept_with_the_reason(opened: Page, server: FakeServer) -> None:
    server.refusal = refusal(400, "temperature is -1; allowed: 0 or more")
    turn = ask(opened, "Spain?")
    expect(turn).to_contain_text("temperature is -1; allowed: 0 or more")
    expect(turn.locator(".question")).to_have_text("Spain?")
    server.refusal = None
    opened.get_by_label("Your message").fill("a draft")
    turn.get_by_role("button", name="Edit and send again").click()
    expect(opened.get_by_label("Your message")).to_have_value("Spain?\na draft")
    expect(opened.get_by_label("Your message")).to_be_focused()
    turn = ask(opened, "Spain?")
    server.write(piece("Madrid"), end())
    expect(answer_of(turn)).to_have_text("Madrid")
    expect(opened.get_by_role("article")).to_have_count(1)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (event({"error": {"message": "out of memory"}}), "out of memory"),
        (ConnectionError(), "The connection was lost before the answer ended."),
        (EOFError(), "The connection ended before the answer did."),
        (b"data: {oops\n\n", "The server sent what is no JSON: {oops"),
    ],
    ids=["error event", "broken connection", "early end", "no JSON"],
)
def test_an_answer_that_breaks_off_is_shown_and_not_part_of_the_conversation(
    opened: Page, server: FakeServer, then: bytes | Exception, said: str
) -> None:
    turn = ask(opened, "Spain?")
    server.write(piece("Mad"))
    expect(answer_of(turn)).to_have_text("Mad")
    server.write(then)
    expect(turn).to_contain_text(said)
    expect(answer_of(turn)).to_have_text("Mad")
    expect(turn.get_by_role("button", name="Edit and send again")).to_be_visible()
    turn = ask(opened, "And France?")
    server.write(piece("Paris"), end())
    expect(facts_of(turn)).to_contain_text("finished")
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "And France?"}]


def test_a_key_is_asked_for_and_kept_for_this_tab_only(page: Page, server: FakeServer) -> None:
    server.key = "secret"
    page.goto("/")
    notice = page.get_by_role("status")
    expect(notice).to_have_text("The server needs an API key.")
    expect(page.get_by_label("API key")).to_be_focused()
    page.get_by_label("API key").fill("guess")
    page.get_by_label("API key").press("Enter")
    expect(notice).to_have_text("The server refused this API key.")
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#model")).to_have_text(MODEL)
    expect(notice).to_be_hidden()
    turn = ask(page, "Spain?")
    server.write(piece("Madrid"), end())
    expect(answer_of(turn)).to_have_text("Madrid")
    page.reload()
    expect(page.locator("#model")).to_have_text(MODEL)
    other_tab = page.context.new_page()
    other_tab.goto("/")
    expect(other_tab.get_by_label("API key")).to_be_visible()


def test_a_key_that_is_withdrawn_is_asked_for_again(opened: Page, server: FakeServer) -> None:
    server.key = "new"
    turn = ask(opened, "Spain?")
    expect(turn).to_contain_text("Give a valid API key.")
    opened.get_by_label("API key").fill("new")
    opened.get_by_label("API key").press("Enter")
    expect(opened.get_by_role("status")).to_be_hidden()
    turn = edit_and_send_again(opened, turn, "Spain?")
    server.write(piece("Madrid"), end())
    expect(answer_of(turn)).to_have_text("Madrid")


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (429, {"Retry_After": "30"}, "The server is busy and asks to wait 30 s."),
        (503, {}, "The server is not ready yet: Loading the model. Next try in 5 s."),
        (500, {}, "The server does not name its model: Loading the model."),
    ],
)
def test_a_server_in_trouble_is_said_and_can_be_tried_again(
    page: Page, server: FakeServer, status: int, headers: dict[str, str], said: str
) -> None:
    server.refusal = refusal(status, "Loading the model.", **headers)
    page.goto("/")
    expect(page.get_by_role("status")).to_have_text(said)
    server.refusal = None
    page.get_by_role("button", name="Try now").click()
    expect(page.get_by_role("status")).to_be_hidden()
    expect(page.locator("#model")).to_have_text(MODEL)


def test_a_server_out_of_reach_is_said(opened: Page) -> None:
    opened.route("**/v1/**", lambda route: route.abort())
    turn = ask(opened, "Spain?")
    expect(turn.locator(".failure")).to_contain_text("The server cannot be reached.")
    expect(opened.get_by_role("status")).to_have_text(
        "The server cannot be reached. Next try in 5 s."
    )


def test_a_busy_server_is_asked_again_when_it_said_so(page: Page, server: FakeServer) -> None:
    page.clock.install()
    page.goto("/")
    expect(page.locator("#model")).to_have_text(MODEL)
    server.refusal = refusal(429, "Too many wait.", Retry_After="30")
    turn = ask(page, "Spain?")
    expect(turn).to_contain_text("Too many wait.")
    notice = page.get_by_role("status")
    expect(notice).to_have_text("The server is busy and asks to wait 30 s.")
    server.refusal = None
    page.clock.run_for(29_000)
    expect(notice).to_be_visible()
    page.clock.run_for(2_000)
    expect(notice).to_be_hidden()


def test_the_keyboard_is_enough(opened: Page, server: FakeServer) -> None:
    question = opened.get_by_label("Your message")
    expect(question).to_be_focused()
    question.press("Enter")  # nothing to send
    opened.keyboard.type("one")
    opened.keyboard.press("Shift+Enter")
    opened.keyboard.type("two")
    expect(question).to_have_value("one\ntwo")
    opened.keyboard.press("Tab")
    expect(opened.get_by_role("button", name="Send", exact=True)).to_be_focused()
    opened.keyboard.press("Space")
    server.write(end())
    expect(facts_of(opened.get_by_role("article"))).to_contain_text("finished")
    expect(question).to_be_focused()
    assert [sent["messages"][0]["content"] for sent in server.asked] == ["one\ntwo"]
    opened.keyboard.press("Shift+Tab")
    expect(opened.get_by_role("log")).to_be_focused()  # to scroll it
    opened.keyboard.press("Shift+Tab")
    expect(opened.get_by_label("stop")).to_be_focused()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(opened: Page, server: FakeServer, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 640})
    turn = ask(opened, "w" * 500)
    server.write(piece("m" * 500), end())
    expect(facts_of(turn)).to_contain_text("finished")
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    assert opened.evaluate("document.getElementById('log').scrollWidth") <= width
    expect(opened.get_by_label("Your message")).to_be_in_viewport(ratio=1)
    expect(opened.get_by_label("temperature")).to_be_visible(visible=width > 360)


def test_a_long_answer_is_followed_unless_the_reader_scrolls_away(
    opened: Page, server: FakeServer
) -> None:
    turn = ask(opened, "Count.")
    server.write(piece("\n" * 200 + "last line"))
    expect(facts_of(turn)).to_be_in_viewport()
    log = opened.get_by_role("log")
    log.evaluate("log => { log.scrollTop = 0; }")
    server.write(piece("\n" * 200), end())
    expect(facts_of(turn)).to_contain_text("finished")
    assert log.evaluate("log => log.scrollTop") == 0
