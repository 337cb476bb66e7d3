"""A server that goes away and comes back: a loopback proxy in front of a real one.

It knows no HTTP but where a request begins: what a client sends after it has read an answer.
"""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

CHUNK = 1 << 16


class Proxy:
    """``requests``: the first lines of all that came, "POST /api/2.0/... HTTP/1.1"."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._server = (str(parts.hostname), int(parts.port or 80))
        self._listener = _listen(0)
        self.port = int(self._listener.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}"
        self.requests: list[str] = []
        self.outages: list[float] = []  # when each began, time.monotonic()
        self._lock = threading.RLock()
        self._open: set[socket.socket] = set()
        self._cuts: list[_Cut] = []
        self._loses: Callable[[str, bytes], bool] = lambda line, request: False

    def go_away(self, seconds: float | None) -> None:
        """Refuse connections and reset those that are open; for good where ``seconds`` is None."""
        with self._lock:
            self.outages.append(time.monotonic())
            _reset(self._listener)
            for one in self._open:
                _reset(one)
            self._open.clear()
        if seconds is not None:
            timer = threading.Timer(seconds, self.come_back)
            timer.daemon = True
            timer.start()

    def come_back(self) -> None:
        with self._lock:
            self._listener = _listen(self.port)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def go_away_at(
        self, request: str, seconds: float | None, after: int = 0, answered: bool = False
    ) -> None:
        """Once, when ``after`` bytes of a request have passed whose first line matches; or,
        ``answered``, of its answer, so that the server has done the work. 0 seconds: only these
        connections break."""
        self._cuts.append(_Cut(re.compile(request), after, seconds, answered))

    def lose_answers(self, loses: Callable[[str, bytes], bool]) -> None:
        """Drop the connection instead of handing on the answers to such requests.

        ``loses`` gets the first line and the whole request; the server has done the work.
        """
        self._loses = loses

    def count(self, pattern: str) -> int:
        return sum(1 for line in self.requests if re.search(pattern, line))

    def start(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        self.go_away(None)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed: away
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                _reset(client)
                continue
            with self._lock:
                self._open |= {client, server}
            talk = _Talk(self, client, server)
            for pump in (talk.requests, talk.answers):
                threading.Thread(target=pump, daemon=True).start()

    def cut_for(self, line: str, passed: int, answered: bool) -> bool:
        """Whether the server goes away at this point of a request, or of its answer."""
        with self._lock:
            for cut in self._cuts:
                here = cut.answered == answered and passed >= cut.after
                if here and cut.request.search(line):
                    self._cuts.remove(cut)
                    self.go_away(cut.seconds)
                    return True
        return False

    def loses(self, line: str, request: bytes) -> bool:
        with self._lock:
            return self._loses(line, request)


@dataclass(frozen=True)
class _Cut:
    request: re.Pattern[str]
    after: int  # bytes
    seconds: float | None
    answered: bool


class _Talk:
    """One connection: a request, its answer, the next request."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._line, self._request, self._passed = "", b"", 0
        self._answered = True

    def requests(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(CHUNK):
                if self._answered:
                    self._answered, self._request, self._passed = False, b"", 0
                    self._line = data.split(b"\r\n", 1)[0].decode("latin-1")
                    self._proxy.requests.append(self._line)
                self._passed += len(data)
                if len(self._request) < CHUNK:
                    self._request += data
                if self._proxy.cut_for(self._line, self._passed, answered=False):
                    return
                self._server.sendall(data)
        self._end()

    def answers(self) -> None:
        passed = 0
        with suppress(OSError):
            while data := self._server.recv(CHUNK):
                passed = len(data) if not self._answered else passed + len(data)
                if self._proxy.cut_for(self._line, passed, answered=True):
                    break
                if not self._answered and self._proxy.loses(self._line, self._request):
                    _reset(self._client)
                    break
                self._answered = True
                self._client.sendall(data)
        self._end()

    def _end(self) -> None:
        for one in (self._client, self._server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def proxy(server: str) -> Iterator[Proxy]:
    """In front of the server at this address."""
    one = Proxy(server)
    one.start()
    try:
        yield one
    finally:
        one.close()


def every_first_answer() -> Callable[[str, bytes], bool]:
    """Each request is carried out twice: the answer to the first time is lost."""
    seen: set[tuple[str, bytes]] = set()

    def loses(line: str, request: bytes) -> bool:
        key = line, request.partition(b"\r\n\r\n")[2]
        new = key not in seen
        seen.add(key)
        return new

    return loses


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def _reset(connection: socket.socket) -> None:
    """As when the other side's machine has started again: no orderly end. Also wakes who waits
    for a listener, which closing alone would not."""
    with suppress(OSError):
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # on, 0 seconds
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        connection.close()
