"""A digest that is remembered is that of what the file holds now."""

import os
import time
from pathlib import Path

import pytest

from slmflow.served import digests
from slmflow.served.digests import file_sha256, link, remember

BIG = 2 * digests.SMALL
LONG_AGO = (1_700_000_000, 1_700_000_000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "RACY", 0)  # as if every file had been left alone for a while


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    seen: list[Path] = []
    read = digests._read

    def counted(path: Path) -> str:
        seen.append(path)
        return read(path)

    monkeypatch.setattr(digests, "_read", counted)
    return seen


def file_of(path: Path, letter: bytes) -> Path:
    """Of one size and time, whatever it holds, as tools leave it that keep times."""
    path.write_bytes(letter * BIG)
    os.utime(path, LONG_AGO)
    return path


def test_a_large_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    file = file_of(tmp_path / "f", b"a")
    assert file_sha256(file) == file_sha256(file)
    assert reads == [file]


def test_other_bytes_of_the_same_size_and_time_are_read(tmp_path: Path) -> None:
    """Written in place, as ``rsync -t --inplace`` and ``cp -p`` do."""
    file = file_of(tmp_path / "f", b"a")
    before = file_sha256(file)
    file_of(file, b"b")
    assert file.stat().st_mtime == LONG_AGO[1]
    assert file_sha256(file) != before


def test_a_new_file_in_the_inode_of_one_that_was_deleted_is_read(tmp_path: Path) -> None:
    """Unpacked with the archive's times, where another version of it lay."""
    seen: dict[int, str] = {}
    reused = 0
    for number in range(32):
        file = file_of(tmp_path / f"f{number}", b"%c" % (65 + number))
        inode, digest = file.stat().st_ino, file_sha256(file)
        assert digest not in seen.values()
        reused += inode in seen
        seen[inode] = digest
        file.unlink()
    if not reused:
        pytest.skip("this file system gives no inode twice so soon")


def test_links_share_what_was_read_of_one(tmp_path: Path, reads: list[Path]) -> None:
    """A link changes the inode, which is no other content."""
    file = file_of(tmp_path / "f", b"a")
    digest = file_sha256(file)
    for number in range(3):
        link(file, tmp_path / f"link{number}")
    assert {file_sha256(tmp_path / f"link{number}") for number in range(3)} == {digest}
    assert file_sha256(file) == digest
    assert reads == [file]


def test_a_link_to_what_was_changed_behind_the_time_is_read(
    tmp_path: Path, reads: list[Path]
) -> None:
    file = file_of(tmp_path / "f", b"a")
    before = file_sha256(file)
    file_of(file, b"b")
    link(file, tmp_path / "link")
    assert file_sha256(tmp_path / "link") != before
    assert reads == [file, tmp_path / "link"]


def test_a_file_as_young_as_a_tick_of_its_clock_is_read_again(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "RACY", 3600 * 10**9)
    file = file_of(tmp_path / "f", b"a")  # an old time, but written now
    file_sha256(file)
    file_sha256(file)
    assert reads == [file, file]


def test_what_nobody_writes_again_is_remembered_at_any_age(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "RACY", 3600 * 10**9)
    file = file_of(tmp_path / "f", b"a")
    remember(file, "digest")
    assert file_sha256(file) == "digest"
    assert reads == []
    assert time.time() - file.stat().st_mtime > 3600
