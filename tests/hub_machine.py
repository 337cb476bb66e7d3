"""A machine from which a hub on loopback is asked, each time by a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub_server import Hub

ROOT = Path(__file__).resolve().parents[1]
NAME = "maker/small"
ONNX_NAME = "maker/small-onnx"
# The client reads its settings when it is imported, so every call gets a process of its own.
CALL = """
import json, sys
from slmflow import sources
from slmflow.errors import SourceError
(function, *arguments), options = json.loads(sys.argv[1])
notes = []
try:
    model = getattr(sources, function)(*arguments, notes.append, **options)
    answer = {"path": str(model.path), "source": model.source, "revision": model.revision}
    answer["code"] = model.code
except SourceError as error:
    answer = {"error": str(error)}
print(json.dumps({**answer, "notes": notes}))
"""
CHECKPOINT = {
    "config.json": b"{}",
    "generation_config.json": b'{"do_sample": false}',
    "model.safetensors": bytes(range(256)) * 40,
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"bos_token": "<s>"}',
    "LICENSE": b"MIT",
    "README.md": b"# Small",
}
NOT_NEEDED = {
    "pytorch_model.bin": b"pickled",
    "modeling_small.py": b"raise SystemExit",
    "flax_model.msgpack": b"flax",
    "onnx/model.onnx": b"another format",
    "original/config.json": b"another copy",
}
# Every content differs: the client fetches equal ones once.
WANTED_ONNX = "cpu/int4-block-32"
ONNX = {
    f"{WANTED_ONNX}/genai_config.json": b'{"model": {"decoder": {"filename": "model.onnx"}}}',
    # The piece of a graph that names its file of weights.
    f"{WANTED_ONNX}/model.onnx": b"graph\n\x08location\x12\x0fmodel.onnx.data and so on",
} | {
    name: name.encode()
    for name in (
        f"{WANTED_ONNX}/model.onnx.data",
        f"{WANTED_ONNX}/tokenizer.json",
        "LICENSE",
        "README.md",
    )
}
OTHER_ONNX = {"cuda/fp16/genai_config.json": b'{"model": {}}'} | {
    name: name.encode()
    for name in (
        f"{WANTED_ONNX}-acc-level-4/genai_config.json",
        f"{WANTED_ONNX}-acc-level-4/model.onnx",
        f"{WANTED_ONNX}/configuration_small.py",
        "cuda/fp16/model.onnx.data",
        "config.json",
    )
}


@dataclass(frozen=True)
class Answer:
    error: str = ""
    path: Path = Path()
    source: str = ""
    revision: str = ""
    code: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        assert not self.error
        paths = (path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in paths}


@dataclass(frozen=True)
class Machine:
    """A user's home with its caches, from which the hub is asked."""

    home: Path
    hub: Hub

    @property
    def lock(self) -> Path:
        return self.home / "models.lock.yaml"

    @property
    def cache(self) -> Path:
        """Where the hub's client keeps what it downloads."""
        return self.home / ".cache" / "huggingface" / "hub"

    def find(self, revision: str | None = None, source: str = NAME, **settings: str) -> Answer:
        return self._call(["find_checkpoint", source, revision], settings)

    def find_with_code(self) -> Answer:
        """The same for a model whose config trusts the checkpoint's own code."""
        return self._call(["find_checkpoint", NAME, None], {}, {"own_code": True})

    def start(self, **settings: str) -> "subprocess.Popen[bytes]":
        """The same as ``find``, left to itself."""
        call = json.dumps([["find_checkpoint", NAME, None], {}])
        command = [sys.executable, "-c", CALL, call]
        environment = self.environment(settings)
        return subprocess.Popen(command, cwd=self.home, env=environment, stdout=subprocess.PIPE)

    def find_onnx(self, folder: str = WANTED_ONNX, **settings: str) -> Answer:
        return self._call(["find_onnx", ONNX_NAME, None, folder], settings)

    def _call(
        self,
        call: list[str | None],
        settings: dict[str, str],
        options: dict[str, bool] | None = None,
    ) -> Answer:
        done = subprocess.run(
            [sys.executable, "-c", CALL, json.dumps([call, options or {}])],
            cwd=self.home,
            env=self.environment(settings),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        return Answer(**{**answer, "path": Path(answer.get("path", ""))})

    def environment(self, settings: dict[str, str]) -> dict[str, str]:
        # Nothing inherited but PATH: no proxy and no token of whoever runs the tests.
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "src"),
            "HOME": str(self.home),
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "SLMFLOW_LOCK": str(self.lock),
            **settings,
        }
