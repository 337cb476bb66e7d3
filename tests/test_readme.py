"""What README.md and the program tell people to type works."""

import json
import re
import shlex
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, Packaged, Workplace

README = (ROOT / "README.md").read_text("utf-8")
ENTRY_POINTS = (
    *("main", "transformers_pipeline", "custom_onnx", "evaluate", "predict", "serve"),
    *("rerun", "lock", "materialise", "export", "doctor"),
)


FIRST_KEYS = {"rerun": "run_id", "lock": "models", "materialise": "model_uri"}  # of their configs
FIRST_OF_A_LIST = r"^([\w./]+=[\w.]+),[\w.,]+$"


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def as_script(line: str) -> tuple[str, list[str]] | None:
    """The entry point and Hydra arguments that a command of the README comes down to."""
    words = shlex.split(line)
    if words[:2] == ["python", "-m"]:
        return words[2].removeprefix("entrypoints."), words[3:]
    if words[0] == "./run" and words[1] in ENTRY_POINTS:
        return words[1], [word for word in words[2:] if word != "-P"]
    if words[:3] == ["mlflow", "run", "."]:
        given = [words[i + 1] for i, word in enumerate(words) if word == "-P"]
        return words[words.index("-e") + 1], given
    return None


COMMANDS = [parsed for line in shell_lines() if (parsed := as_script(line))]


def test_the_readme_has_commands_of_every_entry_point() -> None:
    assert {entry_point for entry_point, _ in COMMANDS} == set(ENTRY_POINTS)


@pytest.mark.parametrize(("entry_point", "arguments"), COMMANDS)
def test_every_command_of_the_readme_composes(
    workplace: Workplace, entry_point: str, arguments: list[str]
) -> None:
    """With the program's own arguments; what needs the hub is not run here."""
    if entry_point in ("evaluate", "lock"):
        arguments = [re.sub(r"^models=(.*)$", r"models=[\1]", word) for word in arguments]
    shown = [word for word in arguments if word not in ("--multirun", "--help")]
    plain = [re.sub(FIRST_OF_A_LIST, r"\1", word) for word in shown]  # --cfg shows one config
    extra = [] if "--cfg" in plain else ["--cfg", "job"]
    result = workplace.script(entry_point, *plain, *extra)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{FIRST_KEYS.get(entry_point, 'model')}:")


@pytest.mark.parametrize(
    "line",
    [
        line
        for line in shell_lines()
        if line.startswith("./run custom_onnx -P search=sample")
        or (
            line.startswith(("./run evaluate -P models=", "./run evaluate -P gate=first"))
            and "openai:" not in line
        )
    ],
)
def test_commands_on_the_demo_model_run(scratch: Workplace, line: str) -> None:
    """As they stand, in a shell."""
    command = line.replace("python -m", f"{sys.executable} -m")
    result = scratch.run(["sh", "-c", command])
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_python_example_of_the_readme_runs(packaged: Packaged, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    result = packaged.workplace.run([sys.executable, "-c", example], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "Madrid\nMadrid"


def next_command(packaged: Packaged, beginning: str) -> str:
    lines = [line.strip() for line in packaged.output.splitlines()]
    return next(line for line in lines if line.startswith(beginning))


@contextmanager
def serving(packaged: Packaged, command: str, ready: str) -> Iterator[list[str]]:
    """A server of ours, until the block ends; it is up when it has printed ``ready``.

    What it printed until then.
    """
    process = subprocess.Popen(
        ["sh", "-c", f"exec {command}"],
        env=dict(packaged.workplace.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    assert process.stdout is not None
    seen = []
    try:
        for line in process.stdout:
            seen.append(line)
            if ready in line:
                break
        assert process.poll() is None, "".join(seen)
        yield seen
    finally:
        watchdog.cancel()
        subprocess.run(["kill", "-TERM", "--", f"-{process.pid}"], check=False)
        process.wait()
        process.stdout.close()


def test_the_commands_to_serve_and_to_ask_work_as_printed(packaged: Packaged) -> None:
    serve = next_command(packaged, f"{ROOT}/run serve")
    with serving(packaged, serve, "curl -s") as printed:
        ask = next(line.strip() for line in printed if line.strip().startswith("curl"))
        answer = packaged.workplace.run(["sh", "-c", ask])
    completion = json.loads(answer.stdout)
    assert completion["choices"][0]["message"]["content"] == "Madrid"
    assert completion["object"] == "chat.completion"


def test_the_command_for_the_ui_works_as_printed(packaged: Packaged) -> None:
    show = next_command(packaged, "mlflow ui")
    with serving(packaged, show, "Application startup complete"):
        assert status_of("http://127.0.0.1:5000/") == 200


def status_of(url: str) -> int:
    """Its workers say that they are up a moment before they listen."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url) as page:
                return int(page.status)
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
