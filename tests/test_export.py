"""export: a packaged model that works, and proves itself, where MLflow's server is out of reach."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slmflow.config.export import Format, FormatName
from slmflow.errors import UserError
from slmflow.export import verify
from slmflow.export.errors import ExportError
from slmflow.export.model import Model
from slmflow.export.place import move_into_place, output_folder, staging_beside
from slmflow.export.start import Asked, export, write_manifest
from slmflow.export.write import write_format
from slmflow.served.weights import kept
from tests.conftest import ROOT, Packaged, Workplace, copy_store

ONNX = "models:/phi3-demo/2"
WEIGHTS = "model/artifacts/model/model.onnx.data"
SPAIN = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
LOAD = f"""
import mlflow
print(mlflow.pyfunc.load_model("model").predict({SPAIN})[0]["choices"][0]["message"]["content"])
"""
FORMATS = {
    "folder": Format(),
    "docker": Format(FormatName.docker, base_image="python:3.11-slim"),
    "azureml": Format(
        FormatName.azureml,
        base_image="python:3.11-slim",
        instance_type="Standard_DS3_v2",
        instance_count=1,
    ),
}


def export_here(workplace: Workplace, uri: str, output: Path, settings: Format) -> dict[str, Any]:
    """In this process, within a run of the workplace; the tags of that run."""
    mlflow.set_tracking_uri(workplace.tracking_uri)
    mlflow.set_experiment("tests")
    with mlflow.start_run() as run:
        export(Asked(uri, str(output), settings))
    tags: dict[str, Any] = workplace.client.get_run(run.info.run_id).data.tags
    return tags


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, packaged: Packaged) -> Iterator[Workplace]:
    """The store of ``packaged`` and its cache, for exports in this process."""
    workplace = copy_store(packaged.workplace, tmp_path_factory.mktemp("store"))
    before = os.environ.get("SLMFLOW_CACHE")
    os.environ["SLMFLOW_CACHE"] = workplace.environment["SLMFLOW_CACHE"]
    yield workplace
    del os.environ["SLMFLOW_CACHE"]
    if before is not None:
        os.environ["SLMFLOW_CACHE"] = before


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, store: Workplace) -> Path:
    """The ONNX model as a folder, through ``mlflow run``: the newest version, as none is named."""
    output = tmp_path_factory.mktemp("exported") / "phi3-demo"
    result = store.mlflow_run("export", f"output={output}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"export {ONNX} as folder" in result.stdout
    return output


def verified(folder: Path) -> "subprocess.CompletedProcess[str]":
    """By Python alone: -I -S leave out every package that is installed."""
    command = [sys.executable, "-I", "-S", "verify.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_an_export_answers_without_server_cache_and_network(exported: Path, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    asked = subprocess.run(
        [sys.executable, "-P", "-c", LOAD],
        cwd=exported,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert asked.stdout.strip() == "Madrid", asked.stderr
    assert verified(exported).returncode == 0  # loading it has changed nothing


def test_its_manifest_names_every_file_and_where_the_model_comes_from(
    exported: Path, store: Workplace
) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    version = store.client.get_model_version("phi3-demo", "2")
    told = manifest["model"]
    assert (told["uri"], told["run_id"]) == (ONNX, version.run_id)
    assert told["revision"] == version.tags["revision"]
    assert len(told["digest"]) == 64
    assert manifest["provenance"]["entry_point"] == "custom_onnx"
    assert manifest["provenance"]["code"]["commit"]
    present = {path.relative_to(exported).as_posix() for path in exported.rglob("*")}
    files = {name for name in present if (exported / name).is_file()}
    assert set(manifest["files"]) == files - {"manifest.json"}
    assert {"README.md", "verify.py", "constraints.txt", "model/MLmodel", WEIGHTS} <= files
    assert not {"model/registered_model_meta"} & files
    assert str(Path.home()) not in json.dumps(manifest)


def test_the_run_of_an_export_holds_the_digest_that_verify_prints(
    exported: Path, store: Workplace
) -> None:
    (experiment,) = store.client.search_experiments(filter_string="name = 'tests'")
    (run,) = store.client.search_runs(
        [experiment.experiment_id],
        "tags.`slmflow.entry_point` = 'export' and attributes.status = 'FINISHED'",
    )
    digest = run.data.tags["slmflow.export.manifest"]
    assert f"manifest.json sha256:{digest}" in verified(exported).stdout
    logged = Path(store.client.download_artifacts(run.info.run_id, "manifest.json"))
    assert logged.read_bytes() == (exported / "manifest.json").read_bytes()


def test_verify_needs_python_alone_and_names_what_differs(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    assert verified(copy).stdout.startswith(f"{len(verify.read_files(copy))} files are as")
    with (copy / WEIGHTS).open("r+b") as weights:  # as long as before: only its content tells
        weights.write(b"\0\0\0\1")
    (copy / "model" / "conda.yaml").unlink()
    (copy / "model" / "code" / "late.pyc").touch()
    shutil.move(copy / "model" / "requirements.txt", tmp_path / "elsewhere")
    (copy / "model" / "requirements.txt").symlink_to(tmp_path / "elsewhere")
    result = verified(copy)
    assert result.returncode == 1
    assert [line.split(" (")[0] for line in result.stdout.splitlines()] == [
        "missing: model/conda.yaml",
        "additional: model/code/late.pyc",
        f"changed: {WEIGHTS}",
        "changed: model/requirements.txt",
    ]
    (copy / "manifest.json").write_text("{}")
    assert verified(copy).returncode == 1


NAMES = st.text("abc", min_size=1, max_size=2)
TREES = st.dictionaries(st.tuples(NAMES, NAMES).map("/".join), st.binary(max_size=3), min_size=1)


@settings(max_examples=40, deadline=None)
@given(before=TREES, after=TREES)
def test_verify_tells_exactly_what_two_trees_differ_in(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("tree")

    def lay_out(tree: dict[str, bytes]) -> None:
        for name, content in tree.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    lay_out(before)
    write_manifest(folder, {})
    assert verify.faults(folder) == []
    for name in before:
        (folder / name).unlink()
    lay_out(after)
    assert verify.faults(folder) == [
        *(f"missing: {name}" for name in sorted(before.keys() - after.keys())),
        *(f"additional: {name}" for name in sorted(after.keys() - before.keys())),
        *(
            f"changed: {name}"
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        ),
    ]


def test_exporting_again_gives_the_same_bytes_and_leaves_them_alone(
    exported: Path, store: Workplace, tmp_path: Path
) -> None:
    export_here(store, "models:/phi3-demo@candidate-custom_onnx-cpu", tmp_path / "b", Format())
    assert (tmp_path / "b/manifest.json").read_bytes() == (exported / "manifest.json").read_bytes()
    written = (tmp_path / "b/manifest.json").stat().st_mtime_ns
    export_here(store, ONNX, tmp_path / "b", Format())
    assert (tmp_path / "b/manifest.json").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("notes.txt", "holds something else"), ("model/conda.yaml", "not as it was written")],
)
def test_nothing_is_written_over_what_is_there(
    exported: Path, store: Workplace, tmp_path: Path, name: str, message: str
) -> None:
    output = tmp_path / "output"
    if name.startswith("model"):
        shutil.copytree(exported, output)
    output.mkdir(exist_ok=True)
    (output / name).write_text("mine")
    with pytest.raises(ExportError, match=message):
        export_here(store, ONNX, output, Format())
    if name.startswith("model"):
        (output / "model" / "MLmodel").unlink()
        with pytest.raises(ExportError, match=message) as told:
            export_here(store, ONNX, output, Format())
        assert all(one in str(told.value) for one in ("model/conda.yaml", "model/MLmodel"))
    assert (output / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["output"]  # and nothing is left beside it


def test_files_that_a_model_left_out_are_in_its_export(
    exported: Path, store: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = tmp_path / "lean"
    shutil.copytree(exported / "model", lean)
    left_out = lean / WEIGHTS.removeprefix("model/")
    whole = left_out.read_bytes()
    about = json.loads((lean / "weights.json").read_text())["files"]["model.onnx.data"]
    left_out.unlink()
    assert kept(about["sha256"]).is_file()  # on this machine, by its content
    export_here(store, str(lean), tmp_path / "output", Format())
    assert (tmp_path / "output" / WEIGHTS).read_bytes() == whole

    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path / "another"))
    with pytest.raises(ExportError, match=r"model\.onnx\.data"):
        export_here(store, str(lean), tmp_path / "not", Format())
    assert not (tmp_path / "not").exists()


def test_other_users_can_read_an_export_whatever_the_umask(tmp_path: Path) -> None:
    with staging_beside(tmp_path / "output") as staging:
        made = staging / "export"
        (made / "model").mkdir(parents=True)
        (made / "model" / "MLmodel").touch(mode=0o600)
        (made / "model").chmod(0o700)
        assert move_into_place(made, tmp_path / "output")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"output": 0o755, "model": 0o755, "MLmodel": 0o644}


def test_what_a_killed_export_left_is_deleted_after_a_day(tmp_path: Path) -> None:
    with staging_beside(tmp_path / "output") as running:
        left = tmp_path / f"{running.name}left"
        (left / "export").mkdir(parents=True)
        others = tmp_path / ".output.settings"  # somebody's
        others.mkdir()
        for folder in (left, others):
            os.utime(folder, (0, 0))
        with staging_beside(tmp_path / "output"):
            assert not left.exists()
            assert running.exists()
            assert others.exists()


def test_an_output_that_holds_something_else_is_refused_before_the_model_is_looked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ExportError, match="holds something else"):
        export(Asked("models:/not-there/1", str(tmp_path), Format()))


@pytest.mark.parametrize("output", ["s3://bucket/model", " ", str(ROOT / "MLproject")])
def test_an_output_that_is_no_folder_of_this_machine_is_refused(output: str) -> None:
    with pytest.raises(ExportError, match=r"another output|give a path"):
        output_folder(output)


def test_a_relative_output_begins_at_the_repository() -> None:
    assert output_folder("exports/one") == ROOT / "exports" / "one"


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"base_image": "python:3.11-slim"}, "type format=docker, or leave"),
        ({"name": FormatName.docker, "endpoint": "phi"}, "type format=azureml, or leave"),
        ({"name": FormatName.docker, "base_image": "a\nRUN evil"}, "the name of an image"),
        ({"name": FormatName.azureml, "endpoint": "1a"}, "3 to 32 letters"),
        ({"name": FormatName.azureml, "instance_type": "a b"}, "Standard_DS3_v2"),
        ({"name": FormatName.azureml, "instance_count": 0}, "1 or more"),
    ],
)
def test_settings_that_cannot_work_say_what_is_allowed(
    settings: dict[str, Any], allowed: str
) -> None:
    with pytest.raises(ValueError, match=allowed):
        Format(**settings)


def test_a_mistake_is_told_in_one_message(store: Workplace, tmp_path: Path) -> None:
    output = tmp_path / "output"
    result = store.script("export", f"output={output}", "model_uri=models:/phi3-demo/99")
    assert result.returncode == 1
    assert "models:/phi3-demo/99 is no model that can be loaded" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["docker", "azureml"])
def test_an_image_is_not_promised_for_models_that_it_cannot_serve(
    exported: Path, store: Workplace, tmp_path: Path, name: str
) -> None:
    foreign, cuda = tmp_path / "foreign", tmp_path / "cuda"
    for folder in (foreign, cuda):
        shutil.copytree(exported / "model", folder)
    shutil.rmtree(foreign / "code")
    (foreign / "weights.json").unlink()
    others = yaml.safe_load((foreign / "MLmodel").read_text())
    (foreign / "MLmodel").write_text(
        yaml.safe_dump({**others, "metadata": {"task": "llm/v1/chat"}})
    )
    text = (cuda / "MLmodel").read_text()
    (cuda / "MLmodel").write_text(text.replace("provider: cpu", "provider: cuda"))
    for folder, told in ((foreign, "generate-dockerfile"), (cuda, "CUDA and cuDNN")):
        with pytest.raises(UserError, match=told):
            export_here(store, str(folder), tmp_path / "output", FORMATS[name])
    assert not (tmp_path / "output").exists()
    export_here(store, str(foreign), tmp_path / "plain", Format())  # which promises less
    assert verify.faults(tmp_path / "plain") == []


@pytest.mark.parametrize(
    ("name", "image", "azure"),
    [
        ("phi3-demo", "phi3-demo", "phi3-demo"),
        ("My Model", "my-model", "My-Model"),
        ("007", "007", "007"),
        ("on", "on", "on"),
        ("-_Cat.Schema._m_", "cat.schema_m", "Cat.Schema._m_"),
        ("модель", "model", "model"),
    ],
)
def test_registered_names_are_spelt_as_docker_and_azure_allow_and_stay_text(
    tmp_path: Path, name: str, image: str, azure: str
) -> None:
    written = {chosen: write_small(tmp_path / chosen, name, {"prompt": "a"}) for chosen in FORMATS}
    assert f"docker build -t {image}:1 .\n" in (written["docker"] / "README.md").read_text()
    model, deployment, endpoint = (
        yaml.safe_load((written["azureml"] / f"{file}.yml").read_text())
        for file in ("model", "deployment", "endpoint")
    )
    assert (model["name"], model["version"]) == (azure, "1")
    assert deployment["model"] == f"azureml:{azure}:1"
    mounted = f"/var/azureml-app/azureml-models/{azure}/1"
    assert deployment["environment_variables"] == {"MODEL_DIR": mounted}
    assert deployment["endpoint_name"] == endpoint["name"]
    assert re.fullmatch("[a-z][a-z0-9-]{2,31}", endpoint["name"])


def write_small(folder: Path, name: str, example: dict[str, Any]) -> Path:
    """What lies beside a model of that name, and of the model what is read for it."""
    model = folder / "model"
    (model / "code/slmflow/served").mkdir(parents=True)
    (model / "code/slmflow/served/packaged.py").touch()
    (model / "requirements.txt").write_text("mlflow==3.17.2\n")
    (model / "input_example.json").write_text(json.dumps(example))
    named = Model(f"models:/{name}/1", name, "1", model, {"flavors": {}})
    write_format(folder, named, FORMATS[folder.name])
    return folder


def test_the_commands_of_a_readme_can_be_typed_whatever_the_question(tmp_path: Path) -> None:
    asked = {"messages": [{"role": "user", "content": 'What\'s "it"? $HOME `id` äö'}], "stop": None}
    for name in FORMATS:
        write_small(tmp_path / name, "a", asked)
        if name == "azureml":
            assert json.loads((tmp_path / name / "request.json").read_text()) == asked
            continue
        text = (tmp_path / name / "README.md").read_text()
        command = text[text.index("curl -s") :].partition("\n```")[0]
        assert json.loads(shlex.split(command)[-1]) == asked
        if name == "folder":
            code = text.partition("model.predict(")[2].partition(")\n")[0]
            assert ast.literal_eval(code.removesuffix(")")) == asked
