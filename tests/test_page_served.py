"""The chat page as the real server sends it, talking to the real model."""

import pytest
from playwright.sync_api import expect

from tests.conftest import Packaged
from tests.server import start_server
from tests.test_page import a_browser, a_page, answer_of, ask, facts_of

KINDS = {"transformers": "1", "onnx": "2"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_with_the_model(packaged: Packaged, kind: str) -> None:
    uri = f"model_uri=models:/phi3-demo/{KINDS[kind]}"
    with (
        start_server(packaged.workplace, uri) as server,
        a_browser() as browser,
        browser.new_context(base_url=server.address) as context,
        a_page(context) as page,
    ):
        page.goto("/")
        expect(page.locator("#model")).to_have_text("phi3-demo")
        turn = ask(page, "What is the capital of Spain?")
        expect(answer_of(turn)).to_have_text("Madrid")
        expect(facts_of(turn)).to_contain_text("2 completion tokens")
        page.get_by_role("button", name="New conversation").click()
        turn = ask(page, "x" * 5_000)
        expect(turn).to_contain_text("the model's context allows 1024")


def test_a_key_is_asked_for_and_then_the_model_answers(packaged: Packaged) -> None:
    with (
        start_server(
            packaged.workplace, "model_uri=models:/phi3-demo/2", SLMFLOW_API_KEY="sesame"
        ) as server,
        a_browser() as browser,
        browser.new_context(base_url=server.address) as context,
        a_page(context) as page,
    ):
        page.goto("/")
        page.get_by_label("API key").fill("sesame")
        page.get_by_label("API key").press("Enter")
        expect(page.locator("#model")).to_have_text("phi3-demo")
        expect(answer_of(ask(page, "What is the capital of Spain?"))).to_have_text("Madrid")
