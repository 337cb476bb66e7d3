"""The repository as teammates have it: a bare clone served on loopback, over git:// and smart HTTP.

It holds what lies in the working tree, committed or not, so that tests see the code as it is.
"""

import base64
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

PATIENCE = 60  # seconds; a guard against hanging, no promise of speed
WHO = ("-c", "user.name=tests", "-c", "user.email=tests@example.com")


@dataclass(frozen=True)
class Repository:
    """Three commits of the same files, each on top of the one before."""

    folder: Path  # bare
    tagged: str  # by FIRST
    on_branch: str  # the head of SIDE
    newest: str  # the head of main


FIRST, SIDE = "first", "side/feature"


def git(*arguments: str | Path, standard_input: bytes = b"") -> str:
    """What it printed. Raises ``AssertionError`` with its errors where it failed."""
    result = subprocess.run(
        ["git", *WHO, *map(str, arguments)],
        input=standard_input,
        capture_output=True,
        timeout=PATIENCE,
        env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode().strip()


def publish(checkout: Path, folder: Path) -> Repository:
    """A bare repository in ``folder`` with the files of the checkout that git does not ignore."""
    git("init", "--quiet", "--bare", "--initial-branch=main", folder)
    there = (f"--git-dir={folder}", f"--work-tree={checkout}")
    listed = git("-C", checkout, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = [name for name in listed.split("\0") if (checkout / name).is_file()]
    git(
        *(*there, "update-index", "--add", "-z", "--stdin"),
        standard_input="\0".join(names).encode(),
    )
    tree = git(*there, "write-tree")
    commits: list[str] = []
    for message in ("first", "side", "newest"):
        parent = ["-p", commits[-1]] if commits else []
        commits.append(git(*there, "commit-tree", tree, *parent, "-m", message))
    first, side, newest = commits
    for reference, commit in (
        (f"refs/tags/{FIRST}", first),
        (f"refs/heads/{SIDE}", side),
        ("refs/heads/main", newest),
    ):
        git(*there, "update-ref", reference, commit)
    return Repository(folder, first, side, newest)


@contextmanager
def git_daemon(repository: Repository) -> Iterator[str]:
    """Its git:// address, served by git's own daemon."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    programs = git("--exec-path")
    daemon = subprocess.Popen(  # not "git daemon", which would leave its child behind
        [
            f"{programs}/git-daemon",
            *("--listen=127.0.0.1", f"--port={port}", "--export-all", "--reuseaddr"),
            *(f"--base-path={repository.folder.parent}", str(repository.folder.parent)),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        yield f"git://127.0.0.1:{port}/{repository.folder.name}"
    finally:
        daemon.terminate()
        daemon.wait(PATIENCE)


@contextmanager
def git_over_http(repository: Repository, account: str) -> Iterator[str]:
    """Its http:// address, served by ``git http-backend`` to ``account`` ("user:password")."""
    about = {"folder": repository.folder, "account": account}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Backend,), about))
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{repository.folder.name}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Backend(BaseHTTPRequestHandler):
    """CGI, as RFC 3875 has it, for one program."""

    folder: Path
    account: str

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        expected = f"Basic {base64.b64encode(self.account.encode()).decode()}"
        if self.headers["Authorization"] != expected:
            self.send_response(HTTPStatus.UNAUTHORIZED)
            self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        url = urlsplit(self.path)
        variables = {
            "GIT_PROJECT_ROOT": str(self.folder.parent),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers["Git-Protocol"] or "",
            "HTTP_CONTENT_ENCODING": self.headers["Content-Encoding"] or "",
            "CONTENT_TYPE": self.headers["Content-Type"] or "",
            "CONTENT_LENGTH": self.headers["Content-Length"] or "0",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": url.path,
            "QUERY_STRING": url.query,
            "REMOTE_ADDR": self.client_address[0],
        }
        result = subprocess.run(
            ["git", "http-backend"],
            input=self.rfile.read(int(variables["CONTENT_LENGTH"])),
            capture_output=True,
            env={"PATH": os.environ["PATH"], **variables},
            timeout=PATIENCE,
        )
        self._send(result.stdout)

    def _send(self, output: bytes) -> None:
        head, _, body = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nothing listens on {port}"
        time.sleep(0.05)
