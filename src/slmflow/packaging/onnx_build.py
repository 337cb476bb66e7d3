"""The ONNX model of a config: the publisher's, where one fits, else built and kept in the cache."""

import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slmflow import cache
from slmflow.config.schema import Hardware, Model, Prebuilt, Precision, Provider
from slmflow.errors import BuildError
from slmflow.hub import Announce
from slmflow.machine import installed_version
from slmflow.packaging.checkpoint import get_checkpoint
from slmflow.sources import LocalModel, built_model, find_onnx

BUILDER = "onnxruntime_genai.models.builder"
BUILDER_PACKAGES = ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml")
BLOCK_SIZE = 32  # the builder's default
PUBLISHER, CACHE, BUILT = "the publisher", "the build cache", "a build of its own"
log = logging.getLogger(__name__)


def find_prebuilt(model: Model, hardware: Hardware) -> Prebuilt | None:
    """The publisher's first folder that fits the hardware; see ``OnnxSource``."""
    if model.onnx.source is None:
        return None
    return next((p for p in model.onnx.prebuilt if _fits(p, hardware)), None)


def get_onnx(
    model: Model, hardware: Hardware, announce: Announce, trust: str | None = None
) -> tuple[LocalModel, str]:
    """The ONNX model for this hardware, fetched or built; and where from, as a rerun tells it.

    Raises ``SourceError`` or ``BuildError``.
    """
    prebuilt = find_prebuilt(model, hardware)
    if prebuilt is not None and model.onnx.source is not None:
        source, revision = model.onnx.source, model.onnx.revision
        return find_onnx(source, revision, prebuilt.folder, announce), PUBLISHER
    checkpoint = get_checkpoint(model, trust, announce)
    return build(checkpoint, hardware, announce)


def describe_quantisation(model: Model, hardware: Hardware) -> str:
    """The folder that the publisher quantised, or what the builder was told."""
    prebuilt = find_prebuilt(model, hardware)
    return prebuilt.folder if prebuilt is not None else " ".join(builder_options(hardware))


def build(checkpoint: LocalModel, hardware: Hardware, announce: Announce) -> tuple[LocalModel, str]:
    """Run the ONNX Runtime model builder, or take what an earlier run built from the same."""
    content = checkpoint.revision.startswith("sha256:")
    key = {
        "source": "" if content else checkpoint.source,
        "revision": checkpoint.revision,
        "provider": hardware.provider.value,
        "precision": hardware.precision.value,
        "options": " ".join(builder_options(hardware)),
        "builder": builder_version(),
        **({"code": "trusted"} if checkpoint.code else {}),
    }

    def make(folder: Path) -> None:
        announce(f"building {hardware.precision} for {hardware.provider}; it is kept for later")
        with own_links(checkpoint) as own:
            run_builder(own, folder, hardware, bool(checkpoint.code))

    waiting = "another run builds it; waiting"
    folder, made = cache.entry("onnx", key, make, lambda: announce(waiting))
    return built_model(folder, checkpoint), BUILT if made else CACHE


@contextmanager
def own_links(checkpoint: LocalModel) -> Iterator[Path]:
    """A folder of the checkpoint's own files: the builder would also read pickles beside them."""
    with tempfile.TemporaryDirectory() as folder:
        for name in checkpoint.files:
            (Path(folder) / name).symlink_to((checkpoint.path / name).resolve())
        yield Path(folder)


def builder_options(hardware: Hardware) -> list[str]:
    """The ``--extra_options`` of the builder, complete, so that they can key the cache."""
    if not hardware.quantised:
        return []
    level = hardware.accuracy_level
    if level is None:
        level = 4 if hardware.provider is Provider.cpu else 0
    return [
        f"block_size={hardware.block_size or BLOCK_SIZE}",
        f"accuracy_level={level}",
        f"is_symmetric={str(hardware.symmetric).lower()}",
    ]


def builder_version() -> str:
    """Every package whose version can change the bytes that are built."""
    packages = (*BUILDER_PACKAGES, "onnx", "onnx-ir", "onnxruntime", "transformers", "torch")
    versions = ((package, installed_version(package)) for package in packages)
    return " ".join(f"{package}=={version}" for package, version in versions if version)


def run_builder(checkpoint: Path, output: Path, hardware: Hardware, own_code: bool = False) -> None:
    """Build in a process of its own: torch and the weights are gone when it ends.

    Raises ``BuildError`` with the builder's own last word, ``OSError`` where the disk is full.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", BUILDER, "-i", str(checkpoint), "-o", str(output)]
        command += ["-p", hardware.precision.value, "-e", hardware.provider.value]
        command += ["-c", scratch, "--extra_options", "hf_token=false"]
        command += [f"hf_remote={str(own_code).lower()}"]
        command += builder_options(hardware)
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
        environment["PYTHONHASHSEED"] = "0"  # the same bytes again must not hang on a set's order
        environment.pop("PYTHONPATH", None)
        result = subprocess.run(
            command,
            cwd=scratch,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    if result.returncode == -signal.SIGKILL:
        raise BuildError(
            "the ONNX model builder was killed, most likely for want of memory: it needs about "
            "six times the checkpoint's size; use a machine with more, or a prebuilt model "
            "(model.onnx)"
        )
    if result.returncode != 0 or not (output / "genai_config.json").is_file():
        log.debug(result.stdout)
        if os.strerror(errno.ENOSPC) in result.stdout:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output.parent))
        last = (result.stdout.strip().splitlines() or ["it printed nothing"])[-1]
        raise BuildError(
            f"the ONNX model builder ended with exit code {result.returncode}: {last} "
            "(SLMFLOW_VERBOSE=1 shows all that it printed)"
        )


def _fits(prebuilt: Prebuilt, hardware: Hardware) -> bool:
    same = (prebuilt.provider, prebuilt.precision) == (hardware.provider, hardware.precision)
    if not same or not hardware.symmetric:
        return False
    if hardware.precision not in (Precision.int4, Precision.int8):
        return True
    wanted = (hardware.block_size, hardware.accuracy_level)
    has = (prebuilt.block_size, prebuilt.accuracy_level)
    return all(want in (None, have) for want, have in zip(wanted, has, strict=True))
