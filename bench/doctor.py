"""./run doctor as it is typed: well, for a model of the hub, and with servers that never answer.

Each in turn, round by round. The servers are sockets on loopback that take connections and say
nothing: the worst that a network does.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bench import work
from bench.figures import Figure, show, write
from slmflow import console
from slmflow.checkout import PROJECT_ROOT

TARGET = 3.0  # seconds


def main() -> None:
    options = work.parser("doctor", __doc__, rounds=5).parse_args()
    place = work.prepare(options.work)
    seconds: dict[str, list[float]] = {}
    with (
        silent_server() as address,
        work.run_store(place),
        console.progress("rounds", options.rounds),
    ):
        away = {"HF_ENDPOINT": address, "MLFLOW_TRACKING_URI": address, "HF_HUB_OFFLINE": "0"}
        for _ in range(options.rounds):
            for name, arguments, environment in (
                ("./run doctor", (), {}),
                ("./run doctor, hub and server silent", ("model=phi3_mini_4k",), away),
            ):
                seconds.setdefault(name, []).append(seconds_of(arguments, environment))
    figures = [Figure(name, values, "s", at_most=TARGET) for name, values in seconds.items()]
    show(f"the doctor, load {os.getloadavg()[0]:.1f}", figures)
    write(options.json, "doctor", figures, load=os.getloadavg())


def seconds_of(arguments: tuple[str, ...], environment: Mapping[str, str]) -> float:
    command = ["./run", "doctor", *arguments]
    began = time.perf_counter()
    result = subprocess.run(
        command, cwd=PROJECT_ROOT, env=os.environ | environment, capture_output=True
    )
    assert result.returncode in (0, 1), result.stderr
    return time.perf_counter() - began


@contextmanager
def silent_server() -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1000)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


if __name__ == "__main__":
    main()
