"""Downloads that are killed, damaged or made by others, with the real client against a hub."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmflow import sources
from slmflow.errors import SourceError
from slmflow.hub import sums
from slmflow.lock_file import Sum
from tests.hub_machine import (
    CHECKPOINT,
    NAME,
    ONNX,
    ONNX_NAME,
    OTHER_ONNX,
    WANTED_ONNX,
    Machine,
)
from tests.hub_server import XET_TOKEN, Hub, Repository

STEP = 10 * 1024 * 1024  # bytes; the client writes what arrives in pieces of this size
PATIENCE = 60  # seconds; a guard against hanging, no promise of speed
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "%s"}}' % SHARDS[1].encode()
SHARDED = {name: content for name, content in CHECKPOINT.items() if "safetensors" not in name} | {
    "model.safetensors.index.json": INDEX,
    SHARDS[0]: b"first shard",
    SHARDS[1]: b"second shard",
}
OTHER_TOOL = """
import sys
from huggingface_hub import hf_hub_download
for name in sys.argv[2:]:
    hf_hub_download(sys.argv[1], name)
"""
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub() as hub:
        for name, files in {NAME: CHECKPOINT, ONNX_NAME: {**ONNX, **OTHER_ONNX}}.items():
            hub.repositories[name] = Repository(tmp_path / "hub" / name.partition("/")[2])
            hub.repositories[name].commit(files, "main")
        yield hub


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home, hub)


def silent(_: str) -> None:
    pass


def download_with_another_tool(machine: Machine, source: str, *names: str) -> None:
    """As transformers does: file by file, so that nobody notes what the repository holds."""
    subprocess.run(
        [sys.executable, "-c", OTHER_TOOL, source, *names],
        env=machine.environment({}),
        check=True,
        timeout=PATIENCE,
    )
    assert not list(machine.cache.rglob("trees"))


# What was begun goes on


@pytest.mark.parametrize("xet", [False, True])
def test_a_download_that_was_killed_goes_on_where_it_stopped(
    machine: Machine, hub: Hub, xet: bool
) -> None:
    """Also of a file that the hub offers through Xet, whose client would begin anew."""
    weights = os.urandom(2 * STEP + 1_000_000)
    hub.repositories[NAME].commit({**CHECKPOINT, "model.safetensors": weights}, "main")
    hub.xet |= {"model.safetensors"} if xet else set()
    released = hub.hold("model.safetensors", at=STEP + 1_000_000)
    killed = machine.start()
    until = time.monotonic() + PATIENCE
    while not any(part.stat().st_size >= STEP for part in machine.cache.rglob("*.incomplete")):
        assert time.monotonic() < until, "nothing arrived"
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(PATIENCE) == -signal.SIGKILL
    released.set()
    hub.holds.clear()
    hub.requests.clear()

    found = machine.find()
    assert found.files["model.safetensors"] == weights
    assert f"bytes={STEP}-" in [request.range for request in hub.requests]
    assert hub.fetched().count("model.safetensors") == 1
    assert any("0.01 of 0.02 GB are here, going on" in note for note in found.notes)
    assert not list(machine.cache.rglob("*.incomplete"))
    assert XET_TOKEN not in [request.path for request in hub.requests]


def test_a_part_of_other_bytes_is_thrown_away_and_repeating_works(
    machine: Machine, hub: Hub
) -> None:
    weights = os.urandom(STEP + 1_000_000)
    hub.repositories[NAME].commit({**CHECKPOINT, "model.safetensors": weights}, "main")
    hub.spoil("model.safetensors")
    assert "arrived with another checksum" in machine.find().error
    hub.spoilt.clear()
    assert machine.find().files["model.safetensors"] == weights


# Nothing that differs is used


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_with_a_wrong_checksum_is_refused_and_repeating_works(
    machine: Machine, hub: Hub, name: str
) -> None:
    """The first is told by its SHA-256 (LFS), the second by git's SHA-1."""
    hub.spoil(name)
    error = machine.find().error
    kind = "SHA-256" if name.endswith("safetensors") else "SHA-1"
    assert f"{NAME}: {name} has {kind}" in error
    assert "repeat the command" in error
    hub.spoilt.clear()
    assert machine.find().files == CHECKPOINT
    assert hub.fetched().count(name) == 2


def test_offline_a_file_that_was_changed_in_the_cache_is_refused(machine: Machine) -> None:
    weights = machine.find().path / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[100] ^= 1
    weights.resolve().write_bytes(changed)
    assert "model.safetensors has SHA-256" in machine.find(**OFFLINE).error


def test_a_persons_own_file_that_is_linked_into_the_cache_is_never_deleted(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--maker--small" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--maker--small" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for file in (tmp_path / "mine.safetensors", blobs / "damaged"):
        file.write_bytes(b"another size")
        (snapshot / file.name).symlink_to(file)
        with pytest.raises(SourceError, match="repeat the command"):
            sums.check(snapshot, {file.name: Sum(5)}, NAME, "the hub")
        assert not (snapshot / file.name).is_symlink()
    assert (tmp_path / "mine.safetensors").read_bytes() == b"another size"
    assert not (blobs / "damaged").exists()


# What other tools downloaded


def test_offline_what_another_tool_downloaded_serves(machine: Machine, hub: Hub) -> None:
    """Without README and licence, which loading a model does not fetch."""
    needed = {name: CHECKPOINT[name] for name in CHECKPOINT if name not in ("LICENSE", "README.md")}
    download_with_another_tool(machine, NAME, *needed)
    hub.requests.clear()
    found = machine.find(**OFFLINE)
    assert found.files == needed
    assert found.revision == hub.repositories[NAME].refs["main"]
    assert hub.requests == []


def test_offline_the_shard_that_another_tool_did_not_download_is_named(
    machine: Machine, hub: Hub
) -> None:
    commit = hub.repositories[NAME].commit(SHARDED, "main")
    download_with_another_tool(machine, NAME, *(name for name in SHARDED if name != SHARDS[1]))
    error = machine.find(**OFFLINE).error
    assert f"the download of {NAME} at revision {commit} lacks {SHARDS[1]};" in error
    assert f"hf download {NAME} --revision {commit}" in error
    assert machine.find().files == SHARDED


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_offline_a_checkpoint_without_a_required_file_names_it(
    machine: Machine, missing: str
) -> None:
    download_with_another_tool(machine, NAME, *(name for name in CHECKPOINT if name != missing))
    assert f"lacks {missing};" in machine.find(**OFFLINE).error


def test_offline_the_weights_that_an_onnx_graph_names_are_required(machine: Machine) -> None:
    inside = [name for name in ONNX if name.startswith(WANTED_ONNX)]
    data = f"{WANTED_ONNX}/model.onnx.data"
    download_with_another_tool(machine, ONNX_NAME, *(name for name in inside if name != data))
    assert f"lacks {data};" in machine.find_onnx(**OFFLINE).error
    download_with_another_tool(machine, ONNX_NAME, data)
    assert "model.onnx.data" in machine.find_onnx(**OFFLINE).files


def test_other_tools_find_what_was_downloaded_here(machine: Machine, hub: Hub) -> None:
    machine.find()
    script = (
        "from huggingface_hub import snapshot_download; "
        f"print(snapshot_download({NAME!r}, allow_patterns=['*.json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=machine.environment(OFFLINE),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert Path(done.stdout.strip()).name == hub.repositories[NAME].refs["main"], done.stderr


# Code and pickles


OWN_CODE = {
    "config.json": (
        b'{"model_type": "small_of_maker", "architectures": ["SmallForCausalLM"], "auto_map": '
        b'{"AutoConfig": "configuration_small.SmallConfig", '
        b'"AutoModelForCausalLM": "modeling_small.SmallForCausalLM"}}'
    ),
    "configuration_small.py": b"raise SystemExit",
    "modeling_small.py": b"raise SystemExit()",
}


def test_a_checkpoint_that_needs_its_own_code_is_refused_with_its_files_and_commit(
    machine: Machine, hub: Hub
) -> None:
    commit = hub.repositories[NAME].commit({**CHECKPOINT, **OWN_CODE}, "main")
    error = machine.find().error
    assert f"{NAME} at {commit} is loaded by code of its own" in error
    assert "configuration_small.py, modeling_small.py" in error
    assert "trust_remote_code" in error
    assert set(hub.fetched()) == {name for name in CHECKPOINT if name.endswith("config.json")}


def test_code_is_fetched_with_the_checkpoint_where_the_config_trusts_it(
    machine: Machine, hub: Hub
) -> None:
    hub.repositories[NAME].commit({**CHECKPOINT, **OWN_CODE}, "main")
    found = machine.find_with_code()
    assert found.code == ["configuration_small.py", "modeling_small.py"]
    assert found.files == {**CHECKPOINT, **OWN_CODE}


NATIVE = OWN_CODE["config.json"].replace(b"small_of_maker", b"phi3")


def folder_of(folder: Path, config: bytes) -> str:
    folder.mkdir()
    for name, content in {**CHECKPOINT, **OWN_CODE, "config.json": config}.items():
        (folder / name).write_bytes(content)
    return str(folder)


def test_code_that_transformers_has_taken_over_is_neither_taken_nor_in_the_way(
    tmp_path: Path,
) -> None:
    """As in Phi-3's own repositories."""
    config = NATIVE.replace(b'["SmallForCausalLM"]', b'["Phi3ForCausalLM"]')
    found = sources.find_checkpoint(folder_of(tmp_path / "model", config), None, silent)
    assert found.code == ()
    assert not [name for name in found.files if name.endswith(".py")]


def test_a_class_that_hides_behind_a_known_type_counts_as_code(tmp_path: Path) -> None:
    """MLflow looks for the class, not for the type, and would run the code."""
    with pytest.raises(SourceError, match="is loaded by code of its own"):
        sources.find_checkpoint(folder_of(tmp_path / "model", NATIVE), None, silent)


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_another_repository_is_refused_even_where_it_is_trusted(
    tmp_path: Path, trusted: bool
) -> None:
    config = OWN_CODE["config.json"].replace(b'"modeling_small', b'"maker/other--modeling_small')
    folder = folder_of(tmp_path / "model", config)
    with pytest.raises(SourceError, match=r"of another repository \(maker/other--modeling_small"):
        sources.find_checkpoint(folder, None, silent, trusted)


def test_a_tokenizer_of_its_own_is_refused_even_where_code_is_trusted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", OWN_CODE["config.json"])
    own = b'{"tokenizer_class": "Small", "auto_map": {"AutoTokenizer": ["tok.Small", null]}}'
    (tmp_path / "model" / "tokenizer_config.json").write_bytes(own)
    with pytest.raises(SourceError, match=r"a tokenizer of its own \(tok\.Small\)"):
        sources.find_checkpoint(folder, None, silent, True)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", b"{", r"config\.json of the checkpoint cannot be read \(Expecting"),
        ("config.json", b"[]", r"config\.json of the checkpoint cannot be read .*no JSON object"),
        ("config.json", b'{"auto_map": ["a.B"]}', "auto_map is no mapping"),
        ("tokenizer_config.json", b'{"auto_map": [7]}', "auto_map names what is no class"),
        ("model.safetensors.index.json", b"{}", "readable model.safetensors.index.json"),
        ("model.safetensors.index.json", b"[]", "readable model.safetensors.index.json"),
    ],
)
def test_settings_of_a_checkpoint_that_cannot_be_read_are_named(
    tmp_path: Path, file: str, content: bytes, told: str
) -> None:
    folder = folder_of(tmp_path / "model", b"{}")
    (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(SourceError, match=told):
        sources.find_checkpoint(folder, None, silent)


def test_a_class_that_is_null_counts_as_none(tmp_path: Path) -> None:
    config = b'{"auto_map": {"AutoConfig": null, "AutoModelForCausalLM": null}}'
    assert sources.find_checkpoint(folder_of(tmp_path / "model", config), None, silent).code == ()


def test_a_checkpoint_of_pickles_is_refused_by_their_name(machine: Machine, hub: Hub) -> None:
    files = {name: content for name, content in CHECKPOINT.items() if "safetensors" not in name}
    hub.repositories[NAME].commit({**files, "pytorch_model.bin": b"\x80\x04pickled"}, "main")
    error = machine.find().error
    assert "only pickles (pytorch_model.bin)" in error
    assert "can run any code" in error
    assert "pytorch_model.bin" not in hub.fetched()
