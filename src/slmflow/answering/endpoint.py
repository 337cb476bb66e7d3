"""An OpenAI-compatible server, asked and timed like a packaged model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from threading import Event
from types import TracebackType
from typing import Any

from slmflow.answering.ask import AskError
from slmflow.answering.endpoint_address import Address, parse_address
from slmflow.answering.endpoint_form import (
    CHAT,
    COMPLETIONS,
    names_of,
    reply_of,
    request_of,
    sent_options,
)
from slmflow.answering.endpoint_http import Failed, Server
from slmflow.answering.endpoint_patience import patiently
from slmflow.answering.endpoint_speed import LengthOf, learn_length, timed
from slmflow.answering.in_threads import as_they_come
from slmflow.answering.reply import Measurement, Reply, Setting
from slmflow.listing import first

Way = tuple[bool, Mapping[str, Any]]  # to be completed, not answered; and what to say with it
NO_SUCH_PATH = (404, 405, 501)
ROW_REFUSED = (400, 413, 422)
HELD = {"ignore_eos": True}
"""How vLLM, SGLang and llama.cpp are told to answer as long as they may; OpenAI has no word."""

WAYS: tuple[Way, ...] = ((False, HELD), (False, {}), (True, HELD), (True, {}))
"""To ask for an answer that is timed, the best first: as a chat, in the form that the model knows,
which it does not end at once."""

NAMES_SHOWN = 20


class Endpoint:
    """``with Endpoint.parse(uri) as endpoint: endpoint.connect(); ...``

    Every method raises ``AskError``, in words, for a server that cannot or will not answer. The
    key comes from the environment, OPENAI_API_KEY before SLMFLOW_API_KEY, and is never shown.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self.model = address.model  # None: not known before connect()
        self._closing = ExitStack()
        self._entered: Server | None = None
        self._completes: bool | None = None
        self._length: LengthOf | None = None
        self._way = WAYS[0]
        self._warm = 0  # requests at once that there are connections for

    @classmethod
    def parse(cls, uri: str) -> "Endpoint":
        """Raises ``ConfigError`` for another form than ``openai:/URL`` or ``openai:/URL#MODEL``."""
        return cls(parse_address(uri))

    @property
    def uri(self) -> str:
        return self._address.uri

    def __repr__(self) -> str:
        return f"Endpoint({self.uri!r})"

    def __enter__(self) -> "Endpoint":
        """Raises ``ConfigError`` for a key that cannot be sent."""
        self._entered = self._closing.enter_context(Server(self._address.base))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()

    def connect(self) -> None:
        """Find out the model and whether it can be asked, before anything waits for it.

        A server without GET /models must be given the model's name in the URI.
        """
        try:
            names = names_of(patiently(lambda: self._server.get("/models"), connecting=False))
        except Failed as failed:
            if failed.status not in NO_SUCH_PATH:
                raise self._told(failed) from None
            if self.model is None:
                raise AskError(f"{self._told(failed)}; or name a model: {self.uri}#NAME") from None
            names = []
        if self.model is None:
            self.model = self._only(names)
        elif self.model not in names:  # another name of one, perhaps
            self._check_unlisted(names)

    def answers(
        self, requests: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any], concurrency: int
    ) -> Iterator[tuple[int, Reply]]:
        """Each row's index and reply, as they come, ``concurrency`` requests at a time.

        A row is ``{"messages": [...]}`` or ``{"prompt": "..."}``. ``parameters`` are search
        options; raises ``ConfigError`` for those that OpenAI's API does not have. A row that the
        server refuses (400, 413, 422, and 500 at every try) has ``Reply.error``.
        """
        options = sent_options(parameters)
        if not all(request.get("messages") for request in requests):
            self._completes = self._can_complete()
        return self._answers(requests, options, concurrency)

    def measure(self, text: str, setting: Setting) -> Measurement:
        """Stream ``batch_size`` answers at once, greedy, to prompts cut from ``text``.

        Each prompt of each call begins with a number drawn for it: a server that keeps the
        computation of prompts it has seen has not seen this one. Prompts are a user's message,
        except where the server takes none. Where it refuses ``ignore_eos``, the model may end
        before ``new_tokens``. Steps are told where every token of every row came alone. A try that
        fails is measured again from its beginning.
        """
        try:
            if self._length is None:
                self._length = self._learn(text)
            length = self._length(setting.prompt_tokens)
            return patiently(lambda: self._timed(text, length, setting))
        except Failed as failed:
            raise self._told(failed, "its speed cannot be measured: ") from None

    @property
    def _server(self) -> Server:
        if self._entered is None:
            raise RuntimeError("an Endpoint is used inside its with block")
        return self._entered

    def _answers(
        self, requests: Sequence[Mapping[str, Any]], options: Mapping[str, Any], concurrency: int
    ) -> Iterator[tuple[int, Reply]]:
        completes = bool(self._completes)

        def answer(index: int, given_up: Event) -> Reply:
            path, body = request_of(requests[index], {"model": self.model, **options}, completes)
            try:
                return reply_of(patiently(lambda: self._server.post(path, body), given_up))
            except Failed as failed:
                if failed.status in (*ROW_REFUSED, 500):
                    return Reply("", error=str(failed))
                raise

        answered = 0
        try:
            for index, reply in as_they_come(answer, len(requests), concurrency):
                answered += 1
                yield index, reply
        except Failed as failed:
            so_far = f"after {answered} of {len(requests)} rows were answered, "
            raise self._told(failed, so_far) from None

    def _learn(self, text: str) -> LengthOf:
        """Also the way to ask: the first that is not refused."""
        for self._way in WAYS:
            try:
                return learn_length(text, self._counted)
            except Failed as failed:
                if failed.status not in (*NO_SUCH_PATH, *ROW_REFUSED) or self._way == WAYS[-1]:
                    raise
        raise AssertionError("the last way returns or raises")

    def _timed(self, text: str, length: int, setting: Setting) -> Measurement:
        if setting.batch_size > self._warm:
            timed(text, length, replace(setting, new_tokens=1), self._stream)
            self._warm = setting.batch_size
        return timed(text, length, setting, self._stream)

    def _counted(self, prompt: str) -> dict[str, Any]:
        path, body = self._timed_request(prompt, {"max_tokens": 1})
        return patiently(lambda: self._server.post(path, body))

    def _stream(
        self, prompt: str, options: Mapping[str, Any]
    ) -> Iterator[tuple[float, dict[str, Any]]]:
        return self._server.stream(*self._timed_request(prompt, options))

    def _timed_request(self, prompt: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        completes, held = self._way
        return request_of({"prompt": prompt}, {"model": self.model, **options, **held}, completes)

    def _can_complete(self) -> bool:
        """Asked once, with a prompt that any server takes: what is refused later is the row."""
        if self._completes is not None:
            return self._completes
        body = {"model": self.model, "prompt": "Hello", "max_tokens": 1}
        try:
            patiently(lambda: self._server.post(COMPLETIONS, body))
        except Failed as failed:
            if failed.status in (*NO_SUCH_PATH, *ROW_REFUSED):
                return False
            raise self._told(failed) from None
        return True

    def _only(self, names: Sequence[str]) -> str:
        if len(names) == 1:
            return names[0]
        if not names:
            raise AskError(f"{self.uri}: it lists no model; name one: {self.uri}#NAME")
        raise AskError(
            f"{self.uri}: it has {len(names)} models; name one of them, as in "
            f"{self.uri}#{names[0]}: {first(sorted(names), NAMES_SHOWN)}"
        )

    def _check_unlisted(self, names: Sequence[str]) -> None:
        """A request without a question costs nothing, and tells what is wrong from what is right:
        the path, the key, the model's name."""
        try:
            self._server.post(CHAT, {"model": self.model, "messages": []})
        except Failed as failed:
            if failed.status is None or failed.status in (401, 403, *NO_SUCH_PATH):
                listed = f"; it lists {first(sorted(names), NAMES_SHOWN)}" if names else ""
                raise AskError(f"{self._told(failed)}{listed}") from None

    def _told(self, failed: Failed, when: str = "") -> AskError:
        return AskError(f"{self.uri}: {when}{failed}")
