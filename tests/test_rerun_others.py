"""``rerun`` of the entry points that make no model and no answers: export, lock, materialise."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import yaml

from slmflow.errors import ConfigError, SourceError
from slmflow.replay.compare import compare
from slmflow.replay.pins import beside
from slmflow.replay.record import read
from slmflow.replay.results import Sameness
from slmflow.replay.start import RerunDiffers
from slmflow.weights.materialise import materialise
from tests.conftest import Workplace
from tests.records import a_record
from tests.reruns import again, counted, last_rerun, named, report_of, seen_here, verdicts

ONNX = "models:/phi3-demo/2"
ALIAS = "models:/phi3-demo@candidate-custom_onnx-cpu"


@pytest.fixture
def store(scratch: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """The runs of ``packaged``, seen from this process."""
    yield from seen_here(scratch, monkeypatch)


def test_an_export_is_written_beside_that_of_then_and_compared_file_by_file(
    store: Workplace,
) -> None:
    output = store.folder / "exported"
    done = store.script("export", f"output={output}", f"model_uri={ALIAS}")
    assert done.returncode == 0, done.stderr
    then = named(store, f"export {ALIAS.removeprefix('models:/')}")
    stamp = (output / "manifest.json").stat().st_mtime_ns
    store.client.set_registered_model_alias("phi3-demo", ALIAS.partition("@")[2], "1")
    again(then.info.run_id, strict=True)
    rerun = last_rerun(store)
    report = report_of(store, rerun)
    assert report["pinned"] == {"model_uri": ONNX}
    assert verdicts(report) == {"export: files": "identical"}
    place = Path(beside(str(output), rerun.info.run_id))
    made = json.loads((place / "manifest.json").read_text())
    assert made == json.loads((output / "manifest.json").read_text())
    assert (output / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="never writes over that"):
        again(then.info.run_id, output=f"{output}/")
    recorded = read(then)
    del made["files"]["model/MLmodel"]
    made["files"]["README.md"]["sha256"] = "0"
    other = replace(recorded, documents={**recorded.documents, "manifest.json": made})
    (told,) = [one for one in compare(recorded, other) if one.what == "files"]
    assert told.sameness is Sameness.different
    assert list(told.details) == ["README.md", "model/MLmodel"]


def test_a_model_is_materialised_again_and_its_files_are_those_of_then(store: Workplace) -> None:
    done = store.script("materialise", f"model_uri={ALIAS}")
    assert done.returncode == 0, done.stderr
    then = named(store, f"materialise {ALIAS.removeprefix('models:/')}")
    again(then.info.run_id, strict=True)
    report = report_of(store, last_rerun(store))
    assert report["pinned"] == {"model_uri": ONNX}
    assert verdicts(report) == {"materialise: weights": "identical"}


def test_files_of_a_whole_model_that_are_others_by_now_are_refused(
    store: Workplace, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(mlflow.artifacts.download_artifacts(ONNX), model)
    assert materialise(str(model)).added == 0
    damaged = model / "artifacts" / "model" / "genai_config.json"
    damaged.write_bytes(damaged.read_bytes().replace(b"1", b"2"))
    with pytest.raises(SourceError, match=r"genai_config\.json has other content"):
        materialise(str(model))


def test_a_lock_is_resolved_again_and_written_nowhere(
    scratch: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = scratch.folder / "models.lock.yaml"
    monkeypatch.setenv("SLMFLOW_LOCK", str(lock))
    chosen = {**scratch.environment, "SLMFLOW_LOCK": str(lock)}
    workplace = next(seen := seen_here(replace(scratch, environment=chosen), monkeypatch))
    done = workplace.script("lock", "models=[phi3_demo]")
    assert done.returncode == 0, done.stderr
    written = lock.read_text()
    lock.write_text("# mine\n" + written)
    then = named(workplace, "lock phi3_demo")
    again(then.info.run_id, strict=True)
    report = report_of(workplace, last_rerun(workplace))
    assert counted(report) == {"identical"}
    (told,) = report["findings"]
    (entry,) = yaml.safe_load(written)["models"]
    assert told["what"].startswith("demo/phi3_demo") and told["words"] == entry["commit"][:19]
    assert lock.read_text() == "# mine\n" + written
    seen.close()


def test_another_commit_or_file_of_a_locked_model_is_told() -> None:
    tags = {"slmflow.entry_point": "lock"}

    def locked(**models: tuple[str, str]) -> dict[str, object]:
        told = {
            name: {"commit": commit, "files": {"config.json": {"size": 1, "sha256": digest}}}
            for name, (commit, digest) in models.items()
        }
        return {"locked.json": {"format": 1, "models": told}}

    then = a_record(tags, locked(a=("c" * 40, "1"), b=("d" * 40, "1"), e=("f" * 40, "1")))
    now = a_record(tags, locked(a=("0" * 40, "1"), b=("d" * 40, "2"), g=("f" * 40, "1")))
    found = {one.what: one for one in compare(then, now)}
    assert found["a"].words == f"{'c' * 19} -> {'0' * 19}"
    assert "1 other files: config.json" in found["b"].words
    assert {found[name].sameness for name in "abe"} == {Sameness.different}
    assert found["g"].sameness is Sameness.unknown


def test_a_rerun_that_can_compare_nothing_is_refused_by_strict(
    scratch: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that was recorded before its commits were."""
    lock = scratch.folder / "models.lock.yaml"
    monkeypatch.setenv("SLMFLOW_LOCK", str(lock))
    workplace = next(seen := seen_here(scratch, monkeypatch))
    experiment = workplace.client.get_experiment_by_name("tests").experiment_id
    old = workplace.client.create_run(experiment, tags={"slmflow.entry_point": "lock"})
    workplace.client.log_text(old.info.run_id, "models: [phi3_demo]\n", "config.yaml")
    workplace.client.set_terminated(old.info.run_id)
    with pytest.raises(RerunDiffers, match="nothing of run") as refused:
        again(old.info.run_id, strict=True)
    assert refused.value.exit_code == 2
    again(old.info.run_id)
    assert not lock.exists()
    seen.close()
