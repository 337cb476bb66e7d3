"""The cores of this process, on made-up control groups."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from slmflow.served import cores

V1 = "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty control group tree, on a machine of 16 cores."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    monkeypatch.setattr(cores, "CGROUP_ROOT", folder)
    monkeypatch.setattr(cores, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    return folder


def write(root: Path, own: str | None, files: Mapping[str, str]) -> None:
    if own is not None:
        (root.parent / "own").write_text(own)
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def v1(quota: int, folder: str = "cpu") -> dict[str, str]:
    return {
        f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/cpu.cfs_period_us": "100000\n",
    }


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (None, {}, 16),
        ("", {}, 16),
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        (None, {"cpu.max": "400000 100000\n"}, 4),  # no /proc, as on some sandboxes
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # fractions are rounded up
        ("0::/\n", {"cpu.max": "210000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "200000 50000\n"}, 4),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 16),  # more than the affinity allows
        ("0::/\n", {"cpu.max": "nonsense\n"}, 16),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n"}, 3),
        (
            "0::/a/b\n",
            {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "500000 100000\n"},
            3,
        ),
        ("0::/a/b\n", {"a/cpu.max": "max 100000\n", "a/b/cpu.max": "500000 100000\n"}, 5),
        ("0::/a\n", {"other/cpu.max": "100000 100000\n"}, 16),
        ("0::/../../a\n", {"cpu.max": "200000 100000\n"}, 2),  # seen from another namespace
        (V1, v1(250_000), 3),
        (V1, v1(-1), 16),
        (V1, v1(250_000, "cpu/docker/abc"), 3),
        (V1, v1(600_000) | v1(200_000, "cpu/docker/abc"), 2),
        (V1, v1(200_000) | v1(600_000, "cpu/docker"), 2),
        (V1, v1(200_000, "memory/docker/abc"), 16),
        (V1 + "0::/unified\n", v1(300_000), 3),
    ],
)
def test_the_smallest_quota_on_the_way_to_the_root_bounds_the_cores(
    root: Path, own: str | None, files: Mapping[str, str], expected: int
) -> None:
    write(root, own, files)
    assert cores.available_cores() == expected


def test_the_affinity_bounds_the_cores(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "0::/\n", {"cpu.max": "400000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 7}, raising=False)
    assert cores.available_cores() == 2


def test_without_affinity_the_machines_cores_count(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cores.available_cores() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.available_cores() == 1


def test_threads_are_counted_when_auto_and_taken_when_given(root: Path) -> None:
    write(root, "0::/\n", {"cpu.max": "300000 100000\n"})
    assert cores.thread_count("auto") == 3
    assert cores.thread_count(7) == 7
    assert cores.thread_count("7") == 7
