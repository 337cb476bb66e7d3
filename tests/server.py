"""The real server, as a process of its own."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.conftest import ROOT, Workplace

READY = "listening on "
PATIENCE = 120  # seconds; a guard against hanging, no promise of speed


@dataclass
class Server:
    """``python -m entrypoints.serve``, where it listens and what it has printed."""

    process: "subprocess.Popen[str]"
    address: str = ""
    lines: list[str] = field(default_factory=list)

    def output(self) -> str:
        return "".join(self.lines)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


@contextmanager
def start_server(workplace: Workplace, *arguments: str, **environment: str) -> Iterator[Server]:
    """A server on a port of its own, until the block ends.

    ``arguments`` in Hydra's syntax; ``environment`` on top of the workplace's.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "entrypoints.serve", "serve.port=0", *arguments],
        cwd=ROOT,
        env={**workplace.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Server(process)
    ready = threading.Event()
    reader = threading.Thread(target=_read, args=(server, ready))
    reader.start()
    try:
        assert ready.wait(PATIENCE), f"it did not start:\n{server.output()}"
        assert server.address, f"it ended:\n{server.output()}"
        yield server
    finally:
        if process.poll() is None:
            process.kill()  # a worker notices by its closed input
        process.wait()
        reader.join()


def _read(server: Server, ready: threading.Event) -> None:
    assert server.process.stdout is not None
    with server.process.stdout as output:
        for line in output:
            server.lines.append(line)
            if READY in line:
                server.address = line.partition(READY)[2].partition(";")[0].strip()
                ready.set()
    ready.set()
