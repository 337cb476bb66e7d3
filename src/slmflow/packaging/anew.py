"""ONNX models built past the cache, for a rerun that must not take yesterday's bytes."""

import tempfile
from pathlib import Path

from slmflow.config.schema import Hardware, Model
from slmflow.hub import Announce
from slmflow.packaging.checkpoint import get_checkpoint
from slmflow.packaging.onnx_build import (
    BUILT,
    find_prebuilt,
    get_onnx,
    own_links,
    run_builder,
)
from slmflow.sources import LocalModel, built_model


def build_anew(
    model: Model, hardware: Hardware, folder: Path, announce: Announce, trust: str | None
) -> tuple[LocalModel, str]:
    """As ``get_onnx``, but built in a new folder below ``folder`` where it is built at all."""
    if find_prebuilt(model, hardware) is not None:
        return get_onnx(model, hardware, announce, trust)
    checkpoint = get_checkpoint(model, trust, announce)
    announce(f"building {hardware.precision} for {hardware.provider}, whatever the cache holds")
    output = Path(tempfile.mkdtemp(dir=folder))
    with own_links(checkpoint) as own:
        run_builder(own, output, hardware, bool(checkpoint.code))
    return built_model(output, checkpoint), BUILT
