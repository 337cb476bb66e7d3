"""A user's own folder on a file system with reflinks: the store's copy shares its blocks.

Real file systems, in files of this machine that are mounted; that takes root.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmflow.served import weights
from slmflow.sources import LocalModel
from slmflow.weights.take import take

IMAGE_BYTES = 320 * 2**20  # the least that mkfs.xfs makes
BIG = 24 * 2**20 + 5  # ends within a block
NEW_BYTES = 2**20  # of metadata


@pytest.fixture(params=["btrfs", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    kind = request.param
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"no mkfs.{kind}: run tests/install_file_systems.sh")
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    image, folder = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    folder.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mount refuses {kind} here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def used(disk: Path) -> int:
    """Bytes, of what has reached the disk."""
    subprocess.run(["sync", "--file-system", disk], check=True)
    told = os.statvfs(disk)
    return (told.f_blocks - told.f_bfree) * told.f_frsize


def test_the_stores_copy_of_ones_own_folder_takes_no_room(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMFLOW_CACHE", str(disk / "cache"))
    folder = disk / "checkpoint"
    folder.mkdir()
    file = folder / "model.safetensors"
    content = os.urandom(BIG)
    file.write_bytes(content)
    before = used(disk)
    manifest = take(LocalModel(folder, "maker/small", "sha256:0", (file.name,)), "model")
    assert used(disk) - before < NEW_BYTES
    kept = weights.kept(manifest.files[file.name].sha256)
    assert kept.stat().st_ino != file.stat().st_ino
    # Whoever trains into the folder again does not change what was packaged.
    file.write_bytes(bytes(BIG))
    assert kept.read_bytes() == content
