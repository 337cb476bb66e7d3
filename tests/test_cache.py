"""The folders that runs share: made once, whole or not at all, whoever is killed or comes along."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmflow import cache
from slmflow.served.digests import file_sha256

ROOT = Path(__file__).resolve().parents[1]
KEY = {"source": "maker/small", "revision": "abc", "precision": "int4"}
# Another run: it says what happens and goes on when it is told to (a line on its input).
OTHER_RUN = """
import json, sys
from pathlib import Path
from slmflow import cache
from slmflow.served.digests import file_sha256

def say(word):
    print(word, flush=True)

def make(folder):
    (folder / "first").write_text("one")
    say("making")
    sys.stdin.readline()
    (folder / "second").write_text("two")

def write_json(path, content, write=cache.write_json):
    if sys.argv[2:] == ["stop before the manifest"]:
        say("listing")
        sys.stdin.readline()
    write(path, content)

cache.write_json = write_json
folder, made = cache.entry("kind", json.loads(sys.argv[1]), make, lambda: say("waiting"))
say(f"{'made' if made else 'found'} {folder}")
"""
HANGING = 30  # seconds; longer than any run here needs
CONTENT = {"first": "one", "second": "two"}


class Making:
    """A ``make`` that counts its calls."""

    def __init__(self, content: dict[str, str] = CONTENT) -> None:
        self.content = content
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        write(folder, self.content)


def write(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Keys


def test_the_same_key_makes_once_in_whatever_order_it_is_written() -> None:
    make = Making()
    folder, made = cache.entry("kind", KEY, make)
    assert made
    assert read(folder) == CONTENT
    assert cache.entry("kind", dict(reversed(KEY.items())), make) == (folder, False)
    assert make.calls == 1


@pytest.mark.parametrize("name", KEY)
def test_another_value_of_any_field_makes_anew(name: str) -> None:
    make = Making()
    folder, _ = cache.entry("kind", KEY, make)
    other, made = cache.entry("kind", {**KEY, name: "another"}, make)
    assert made
    assert other != folder
    assert read(folder) == read(other) == CONTENT


def test_another_field_or_kind_makes_anew() -> None:
    make = Making()
    folders = {
        cache.entry("kind", KEY, make)[0],
        cache.entry("kind", {**KEY, "options": ""}, make)[0],
        cache.entry("another", KEY, make)[0],
    }
    assert len(folders) == make.calls == 3


KEYS = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3)


@settings(deadline=None, max_examples=60)
@given(KEYS, KEYS)
def test_keys_share_an_entry_only_when_equal(one: dict[str, str], two: dict[str, str]) -> None:
    assert (cache.key_digest(one) == cache.key_digest(two)) == (one == two)


@pytest.mark.parametrize("chosen", ["cache", "./cache", "~/cache"])
def test_entries_have_absolute_paths_wherever_the_cache_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    # Libraries take a relative path for the name of a model on a hub.
    monkeypatch.setenv("SLMFLOW_CACHE", chosen)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder, _ = cache.entry("kind", KEY, Making())
    assert folder.is_absolute()
    assert folder.is_relative_to(tmp_path / "cache")


def test_without_a_chosen_cache_it_lies_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLMFLOW_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / ".cache" / "slmflow"


# Runs that fail, are killed, or come at the same time


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=type)
def test_a_making_that_raises_leaves_nothing(root: Path, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        write(folder, CONTENT)
        raise error

    with pytest.raises(type(error)):
        cache.entry("kind", KEY, fail)
    assert {path.suffix for path in root.rglob("*") if path.is_file()} <= {".lock"}
    assert [path for path in (root / "kind").iterdir() if path.is_dir()] == []
    folder, made = cache.entry("kind", KEY, Making())
    assert made
    assert read(folder) == CONTENT


@contextmanager
def other_run(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_RUN, json.dumps(KEY), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        guard = Timer(HANGING, process.kill)  # its silence then fails the test
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()


def heard(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_run_killed_while_making_leaves_nothing_usable(root: Path) -> None:
    with other_run() as other:
        assert heard(other) == "making"
        other.kill()
        other.wait()
    (left,) = root.rglob("first")  # killed in the middle
    assert left.parent.name != cache.key_digest(KEY)
    folder, made = cache.entry("kind", KEY, Making({"whole": "yes"}))
    assert made
    assert read(folder) == {"whole": "yes"}
    assert list(root.rglob("first")) == []


def test_a_run_killed_before_the_manifest_leaves_nothing_usable() -> None:
    with other_run("stop before the manifest") as other:
        assert heard(other) == "making"
        go_on(other)
        assert heard(other) == "listing"
        other.kill()
        other.wait()
    folder, made = cache.entry("kind", KEY, Making({"whole": "yes"}))
    assert made
    assert read(folder) == {"whole": "yes"}


def test_a_run_that_wants_what_another_is_making_waits_and_gets_it() -> None:
    with other_run() as first, other_run() as second:
        # Which of the two is first to make is open; the other must wait.
        words = {heard(first): first, heard(second): second}
        assert set(words) == {"making", "waiting"}
        go_on(words["making"])
        made, folder = heard(words["making"]).split(maxsplit=1)
        assert made == "made"
        assert heard(words["waiting"]) == f"found {folder}"
    assert read(Path(folder)) == CONTENT


def test_a_run_that_waits_for_one_that_is_killed_makes_the_entry() -> None:
    with other_run() as first, other_run() as second:
        words = {heard(first): first, heard(second): second}
        words["making"].kill()
        assert heard(words["waiting"]) == "making"
        go_on(words["waiting"])
        assert heard(words["waiting"]).startswith("made")


# Entries that somebody or something changed


def truncate(folder: Path) -> None:
    file = folder / "first"
    times = file.stat()
    file.write_text("")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def change(folder: Path) -> None:
    (folder / "first").write_text("two")  # as long as before
    os.utime(folder / "first", (0, 0))


def add(folder: Path) -> None:
    write(folder, {"third": "three"})


def add_deeper(folder: Path) -> None:
    write(folder, {"deeper/first": "one"})


def delete(folder: Path) -> None:
    (folder / "first").unlink()


def rename(folder: Path) -> None:
    (folder / "first").rename(folder / "third")


def delete_everything(folder: Path) -> None:
    delete(folder)
    (folder / "second").unlink()
    folder.rmdir()


def delete_manifest(folder: Path) -> None:
    folder.with_suffix(".json").unlink()


def break_manifest(folder: Path) -> None:
    manifest = folder.with_suffix(".json")
    manifest.write_text(manifest.read_text()[:-20])


DAMAGES = [
    truncate,
    change,
    add,
    add_deeper,
    delete,
    rename,
    delete_everything,
    delete_manifest,
    break_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(damage: Callable[[Path], None]) -> None:
    make = Making()
    folder, _ = cache.entry("kind", KEY, make)
    assert cache.intact(folder)
    damage(folder)
    assert not cache.intact(folder)
    assert cache.entry("kind", KEY, make) == (folder, True)
    assert read(folder) == CONTENT
    assert cache.intact(folder)
    assert make.calls == 2


def test_an_entry_without_files_is_missed_when_its_folder_is_gone() -> None:
    make = Making({})
    folder, _ = cache.entry("kind", KEY, make)
    folder.rmdir()
    assert cache.entry("kind", KEY, make) == (folder, True)
    assert folder.is_dir()


def test_an_entry_whose_files_were_only_touched_stays() -> None:
    make = Making()
    folder, _ = cache.entry("kind", KEY, make)
    os.utime(folder / "first", (0, 0))
    assert cache.entry("kind", KEY, make) == (folder, False)


def test_a_failed_repair_leaves_no_entry() -> None:
    def fail(folder: Path) -> None:
        raise ValueError

    folder, _ = cache.entry("kind", KEY, Making())
    truncate(folder)
    with pytest.raises(ValueError):
        cache.entry("kind", KEY, fail)
    assert not folder.exists()
    assert not cache.intact(folder)


# Digests

NAMES = st.lists(st.text(alphabet="ab. \n", min_size=1, max_size=3), min_size=1, max_size=2)
CONTENTS = st.dictionaries(NAMES.map("/".join), st.text(alphabet="01", max_size=2), max_size=3)


def digest(content: dict[str, str]) -> str:
    with TemporaryDirectory() as folder:
        write(Path(folder), content)
        return cache.folder_digest(Path(folder))


def writable(content: dict[str, str]) -> bool:
    """No name that means a folder: ``.``, or ``a`` beside ``a/b``."""
    parts = [name.split("/") for name in content]
    return all({".", ".."}.isdisjoint(name) for name in parts) and not any(
        f"{name}/" in f"{other}/" for name in content for other in content if name != other
    )


FOLDERS = CONTENTS.filter(writable)


@settings(deadline=None, max_examples=60)
@given(FOLDERS, FOLDERS)
def test_folders_have_one_digest_only_when_names_and_contents_agree(
    one: dict[str, str], two: dict[str, str]
) -> None:
    assert (digest(one) == digest(two)) == (one == two)
    assert digest(one) == digest(dict(reversed(one.items())))


@settings(deadline=None, max_examples=60)
@given(FOLDERS.filter(bool), st.data())
def test_any_single_change_changes_the_digest(content: dict[str, str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(content)))
    without = {other: text for other, text in content.items() if other != name}
    changes = [without, {**content, name: content[name] + "0"}, {**without, f"{name}c": "0"}]
    digests = {digest(changed) for changed in [content, *changes]}
    assert len(digests) == 4


def test_a_name_cannot_pass_for_two_files(tmp_path: Path) -> None:
    write(tmp_path, {"two/a": "1", "two/b": "2"})
    write(tmp_path, {f"one/a {file_sha256(tmp_path / 'two' / 'a')}\nb": "2"})
    assert cache.folder_digest(tmp_path / "one") != cache.folder_digest(tmp_path / "two")
