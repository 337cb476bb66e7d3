"""The Hugging Face hub's API on loopback, as far as the real client asks for it in a download.

A repository is a folder on disk with one folder for each commit. The answers follow the hub:
sizes only when asked for, large files with the headers of LFS, errors named in ``X-Error-Code``.
Two endpoints below it are no hub: /login (a network that wants a login) and /overloaded.
"""

import hashlib
import json
import os
import re
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatch
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = ("*.safetensors", "*.onnx", "*.onnx.data", "*.bin")
TOKEN = "hf_of_somebody_who_accepted"
INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
XET_TOKEN = "/api/xet-read-token"
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Gated(Enum):
    """What is kept from those without a token. The hub lists the files of a gated repository."""

    NOTHING = 0
    FILES = 1
    EVERYTHING = 2


@dataclass
class Repository:
    folder: Path
    refs: dict[str, str] = field(default_factory=dict)
    gated: Gated = Gated.NOTHING

    def commit(self, files: Mapping[str, bytes], *refs: str) -> str:
        """Put a commit with these files on disk and point the branches and tags at it."""
        earlier = len(list(self.folder.iterdir())) if self.folder.is_dir() else 0
        commit = hashlib.sha1(f"{self.folder.name} {earlier}".encode()).hexdigest()
        for name, content in files.items():
            path = self.folder / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.refs.update(dict.fromkeys(refs, commit))
        return commit

    def find(self, revision: str) -> str | None:
        """The full commit of a branch, a tag or a full commit."""
        commit = self.refs.get(revision, revision)
        return commit if (self.folder / commit).is_dir() else None

    def files(self, commit: str) -> dict[str, Path]:
        folder = self.folder / commit
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in paths}


@dataclass
class Drop:
    """The connection ends where a file's byte ``at`` would follow, ``times`` times."""

    at: int
    times: float
    reset: bool


@dataclass
class Hold:
    """After a file's byte ``at`` nothing more comes until ``released``."""

    at: int
    released: Event


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None


class Hub:
    """``with Hub() as hub:`` serves ``hub.repositories`` at ``hub.url``."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.drops: dict[str, Drop] = {}
        self.holds: dict[str, Hold] = {}
        self.spoilt: set[str] = set()
        self.xet: set[str] = (
            set()
        )  # files that are offered through Xet, of which there is no server
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """From here on connections are refused."""
        for hold in self.holds.values():
            hold.released.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def drop(self, name: str, at: int, times: float = float("inf"), reset: bool = False) -> None:
        """Break this file's transfers: an orderly end too early, or a reset connection."""
        self.drops[name] = Drop(at, times, reset)

    def hold(self, name: str, at: int) -> Event:
        """Keep this file's transfers waiting in the middle, until the event is set."""
        self.holds[name] = Hold(at, Event())
        return self.holds[name].released

    def spoil(self, name: str) -> None:
        """Change a byte of this file in every transfer, as a broken proxy or disk does."""
        self.spoilt.add(name)

    def fetched(self) -> list[str]:
        """The files whose bytes were asked for, sorted, each as often as it was."""
        matches = (FILE.fullmatch(r.path) for r in self.requests if r.method == "GET")
        return sorted(match[3] for match in matches if match)


class _Refusal(Exception):
    def __init__(self, status: HTTPStatus, code: str = "") -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(Request(self.command, url.path, self.headers["Range"]))
        try:
            if match := INFO.fullmatch(url.path):
                self._info(match[1], match[2] or "main", "blobs" in parse_qs(url.query))
            elif match := TREE.fullmatch(url.path):
                self._tree(match[1], match[2])
            elif match := FILE.fullmatch(url.path):
                self._file(match[1], match[2], unquote(match[3]))
            elif url.path.startswith("/login/"):
                self._send(HTTPStatus.OK, b"<p>Log in first", {"Content-Type": "text/html"})
            elif url.path.startswith("/overloaded/"):
                raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                raise _Refusal(HTTPStatus.NOT_FOUND)
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            self._send(refusal.status, b"", headers)

    def _find(self, name: str, revision: str, gate: Gated) -> tuple[str, dict[str, Path]]:
        repository = self.hub.repositories.get(name)
        if repository is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, "RepoNotFound")
        accepted = self.headers["Authorization"] == f"Bearer {TOKEN}"
        if repository.gated.value >= gate.value and not accepted:
            raise _Refusal(HTTPStatus.FORBIDDEN, "GatedRepo")
        commit = repository.find(unquote(revision))
        if commit is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        return commit, repository.files(commit)

    def _info(self, name: str, revision: str, sizes: bool) -> None:
        commit, files = self._find(name, revision, Gated.EVERYTHING)
        siblings = [
            {"rfilename": file, **(_metadata(file, path) if sizes else {})}
            for file, path in files.items()
        ]
        self._send_json({"id": name, "sha": commit, "private": False, "siblings": siblings})

    def _tree(self, name: str, revision: str) -> None:
        _, files = self._find(name, revision, Gated.EVERYTHING)
        self._send_json([_entry(file, path) for file, path in files.items()])

    def _file(self, name: str, revision: str, file: str) -> None:
        commit, files = self._find(name, revision, Gated.FILES)
        if file not in files:
            raise _Refusal(HTTPStatus.NOT_FOUND, "EntryNotFound")
        entry, content = _entry(file, files[file]), files[file].read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers["X-Linked-ETag"] = f'"{entry["lfs"]["oid"]}"'
            headers["X-Linked-Size"] = str(len(content))
        if file in self.hub.xet:
            headers["X-Xet-Hash"] = entry["lfs"]["oid"]
            headers["X-Xet-Refresh-Route"] = f"{self.hub.url}{XET_TOKEN}"
        start, status = 0, HTTPStatus.OK
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            start, status = int(asked[1]), HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if file in self.hub.spoilt:
            content = bytes([content[0] ^ 1]) + content[1:]
        drop, hold = self.hub.drops.get(file), self.hub.holds.get(file)
        if hold is not None and self.command == "GET":
            self._send(status, content[start:], headers, until=max(hold.at - start, 0))
            hold.released.wait()
            self._hang_up(reset=True)
        elif drop is None or drop.times <= 0 or self.command == "HEAD":
            self._send(status, content[start:], headers)
        else:
            drop.times -= 1
            self._send(status, content[start:], headers, until=max(drop.at - start, 0))
            self._hang_up(drop.reset)

    def _send_json(self, content: Any) -> None:
        self._send(HTTPStatus.OK, json.dumps(content).encode(), {"Content-Type": "text/json"})

    def _send(
        self, status: HTTPStatus, body: bytes, headers: Mapping[str, str], until: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):  # a client that has failed elsewhere may be gone
                self.wfile.write(body[:until])

    def _hang_up(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            # Lingering for no time makes the end a reset. Closed by hand: the server would first
            # shut the connection down, which the client sees as an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def _metadata(name: str, path: Path) -> dict[str, Any]:
    """A file in the form of the API of models."""
    entry = _entry(name, path)
    told: dict[str, Any] = {"size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        lfs = entry["lfs"]
        told["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134}
    return told


def _entry(name: str, path: Path) -> dict[str, Any]:
    """A file in the form of the tree API."""
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "oid": blob, "size": len(content)}
    if any(fnmatch(name, pattern) for pattern in LARGE):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry
