"""The doctor over TLS: who is trusted is asked of each service by its own variables."""

import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from slmflow.doctor import hub, server
from slmflow.doctor.finding import Level

TOKEN = "hf_" + "canary4711" * 3
SOURCE = "maker/small"
PATIENCE = 30.0


@dataclass
class Site:
    """A server of one host over TLS that sends everybody on, or answers with what it is given."""

    url: str
    answer: bytes
    onward: str | None = None
    tokens: list[str | None] = field(default_factory=list)  # of each request that arrived


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def site(authority: trustme.CA | None, answer: bytes, onward: str | None = None) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.tokens.append(self.headers["Authorization"])
            self.send_response(200 if onward is None else 308)
            if onward is not None:
                self.send_header("Location", onward + self.path)
            self.send_header("Content-Length", str(len(found.answer)))
            self.end_headers()
            self.wfile.write(found.answer)

        do_POST = do_DELETE = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        scheme = "http" if authority is None else "https"
        if authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
        found = Site(f"{scheme}://127.0.0.1:{listening.server_port}", answer, onward)
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield found
        finally:
            listening.shutdown()


@pytest.fixture
def hub_site(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for found in site(authority, b'{"sha": "abc", "siblings": []}'):
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (
        *("MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH"),
        *("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    ):
        monkeypatch.delenv(name, raising=False)
    server.public_authorities.cache_clear()
    yield
    server.public_authorities.cache_clear()


def written(authority: trustme.CA, folder: Path) -> str:
    file = folder / "authority.pem"
    authority.cert_pem.write_to_path(file)
    return str(file)


def test_the_hubs_token_goes_to_nobody_that_only_mlflow_was_told_to_trust(
    hub_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    found = hub.ask(SOURCE, None, ["*.json"], PATIENCE)
    assert "does not answer" in (found.why_not or "")
    assert hub_site.tokens == []


def test_the_tracking_servers_own_authority_does_not_take_the_hubs_place(
    hub_site: Site, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", written(authority, tmp_path))
    other = written(trustme.CA(), tmp_path / "other")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", other)
    found = hub.ask(SOURCE, None, ["*.json"], PATIENCE)
    assert found.commit == "abc"
    assert hub_site.tokens[0] == f"Bearer {TOKEN}"


def test_a_tracking_server_that_sends_on_to_https_is_followed(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", written(authority, tmp_path))
    for secure in site(authority, b"{}"):
        for plain in site(None, b"", onward=secure.url):
            finding = server.check_registry("registry", plain.url, PATIENCE)
            assert finding.level is Level.ok, finding
            assert len(secure.tokens) == 3


def test_a_tracking_server_that_nobody_vouches_for_is_told_and_not_used(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    for secure in site(authority, b"{}"):
        finding = server.check_registry("registry", secure.url, PATIENCE)
        assert finding.level is Level.failure
        assert "CERTIFICATE_VERIFY_FAILED" in finding.found
        assert secure.tokens == []
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        assert server.check_registry("registry", secure.url, PATIENCE).level is Level.ok
