"""A process that runs points, one after another: the stack is imported once.

The other side is ``slmflow/point_worker.py``. It is kept between points and replaced where it
died, hung, or kept memory.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from slmflow.checkout import PROJECT_ROOT

PATIENCE = 20.0  # seconds to end a run as KILLED after being asked to
KEPT_MEMORY = 1 << 30  # bytes more than after its first breath: then the next point gets a new one


@dataclass(frozen=True)
class Ended:
    """How a point's process dealt with it. ``died``: without an answer."""

    exit_code: int
    words: str
    died: bool = False


class PointProcess:
    """Starts at once; the first point does not wait longer for it than it must."""

    def __init__(self, tracking_uri: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": python_path(),
            "MLFLOW_TRACKING_URI": tracking_uri,
        }
        # A session of its own: Ctrl-C is for the sweep, which ends its points itself.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "slmflow.point_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=PROJECT_ROOT,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._memory: int | None = None

    @property
    def usable(self) -> bool:
        return self._process.poll() is None

    def run(self, order: Mapping[str, Any], timeout: float | None) -> Ended:
        """Until the point has ended, by itself or not. Raises nothing of the point's own."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(dict(order)) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout)
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            self.stop()
            return Ended(-signal.SIGKILL, f"took longer than sweep.timeout={timeout:g} s", True)
        except BaseException:
            self.stop()
            raise
        if not line:
            return self._death()
        event = json.loads(line)
        self._forget_memory(event["memory"])
        return Ended(event["exit_code"], event["words"])

    def stop(self) -> None:
        """Let it end its run as KILLED, then make sure that it is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        with suppress(ProcessLookupError):  # also what it started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _death(self) -> Ended:
        code = self._process.wait()
        with suppress(ProcessLookupError):  # what it had started
            os.killpg(self._process.pid, signal.SIGKILL)
        if code == -signal.SIGKILL:
            return Ended(code, "its process was killed, most likely for want of memory", True)
        if code < 0:
            return Ended(code, f"its process was ended by {signal.Signals(-code).name}", True)
        return Ended(code, f"its process ended with exit code {code}", True)

    def _forget_memory(self, memory: int) -> None:
        """A runtime that does not give memory back loses its process."""
        if self._memory is None:
            self._memory = memory
        elif memory > self._memory + KEPT_MEMORY:
            self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


def python_path() -> str:
    """Where processes find this project: it is never installed."""
    ours = [str(PROJECT_ROOT / "src"), str(PROJECT_ROOT)]
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([*ours, *(path for path in others if path and path not in ours)])
