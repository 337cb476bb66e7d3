"""``mlflow run .``: both models packaged, checked, registered, compared, and on record."""

import json

import mlflow
import pyarrow.parquet as pq
import pytest
from mlflow.entities import Run
from mlflow.models import Model

from tests.conftest import Packaged
from tests.trees import of_main

RUNTIMES = ("transformers_pipeline", "custom_onnx")


def runs(packaged: Packaged) -> dict[str, Run]:
    """Those of main, by name."""
    found = of_main(packaged.workplace)
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found)
    return named


def parent_of(run: Run) -> str | None:
    parent: str | None = run.data.tags.get("mlflow.parentRunId")
    return parent


def test_the_runs_form_one_tree_and_all_finished(packaged: Packaged) -> None:
    found = runs(packaged)
    main = found["main phi3-demo"]
    evaluate = found["evaluate phi3-demo"]
    for name in (*RUNTIMES, "evaluate"):
        assert parent_of(found[f"{name} phi3-demo"]) == main.info.run_id
    for name in ("transformers_pipeline v1", "custom_onnx v2"):
        assert parent_of(found[name]) == evaluate.info.run_id
    assert len(found) == 6
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_every_run_holds_the_composed_config(packaged: Packaged) -> None:
    for name in ("main", *RUNTIMES, "evaluate"):
        run = runs(packaged)[f"{name} phi3-demo"]
        assert run.data.params["search.temperature"] == "0.0"
        assert run.data.params["hardware.threads"] == "auto"
        assert run.data.tags["choice.model"] == "phi3_demo"
        artifacts = packaged.workplace.client.list_artifacts(run.info.run_id)
        assert "config.yaml" in [artifact.path for artifact in artifacts]


def test_a_run_holds_only_the_parameters_that_mean_something_to_it(packaged: Packaged) -> None:
    found = runs(packaged)
    params = {name: found[f"{name} phi3-demo"].data.params for name in (*RUNTIMES, "evaluate")}
    assert params["evaluate"]["data.limit"] == "6"
    assert params["custom_onnx"]["hardware.precision"] == "int4"
    assert params["transformers_pipeline"]["hardware.dtype"] == "float32"
    assert not {"data.limit", "hardware.dtype"} & set(params["custom_onnx"])
    assert not {"data.limit", "hardware.precision"} & set(params["transformers_pipeline"])


@pytest.mark.parametrize(("runtime", "version"), [(RUNTIMES[0], 1), (RUNTIMES[1], 2)])
def test_each_model_is_registered_with_its_tags_and_alias(
    packaged: Packaged, runtime: str, version: int
) -> None:
    client = packaged.workplace.client
    found = client.get_model_version_by_alias("phi3-demo", f"candidate-{runtime}-cpu")
    assert int(found.version) == version
    tags = found.tags
    assert (tags["runtime"], tags["task"], tags["hardware"]) == (runtime, "chat", "cpu")
    assert tags["source"] == "demo/phi3_demo"
    assert tags["revision"].startswith("sha256:")
    assert tags["dtype" if runtime == "transformers_pipeline" else "precision"]
    assert tags["git_commit"]


def test_both_models_answer_most_questions_and_the_metrics_say_so(packaged: Packaged) -> None:
    for name in ("transformers_pipeline v1", "custom_onnx v2"):
        metrics = runs(packaged)[name].data.metrics
        assert metrics["exact_match"] >= 0.5
        assert metrics["contains_answer"] >= metrics["exact_match"]
        for measured in ("tokens_per_second", "first_token_seconds", "load_seconds"):
            assert metrics[measured] > 0
        assert 50e6 < metrics["peak_memory_bytes"] < 3e9
        assert 1e6 < metrics["size_bytes"] < 20e6
    compared = runs(packaged)["evaluate phi3-demo"].data.metrics
    assert "custom_onnx_v2/exact_match" in compared
    beside = "custom_onnx_v2-against-transformers_pipeline_v1"
    assert 0 <= compared[f"{beside}/agreement"] <= 1
    assert compared[f"{beside}/exact_match.low"] <= compared[f"{beside}/exact_match.high"]


def test_every_example_shows_in_the_ui_with_its_scores(packaged: Packaged) -> None:
    client = packaged.workplace.client
    run = runs(packaged)["custom_onnx v2"]
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    traces = mlflow.search_traces(
        locations=[run.info.experiment_id], run_id=run.info.run_id, return_type="list"
    )
    assert len(traces) == 6
    for trace in traces:
        scored = {assessment.name for assessment in trace.info.assessments}
        assert {"exact_match", "contains_answer", "token_f1", "chrf"} <= scored
    rows = client.download_artifacts(run.info.run_id, "answers.parquet")
    assert pq.read_metadata(rows).num_rows == 6


def test_models_name_no_path_of_the_machine_that_made_them(packaged: Packaged) -> None:
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    for version in (1, 2):
        folder = mlflow.artifacts.download_artifacts(f"models:/phi3-demo/{version}")
        flavors = json.dumps(Model.load(folder).flavors)
        assert str(packaged.place) not in flavors
        assert str(packaged.workplace.environment["SLMFLOW_CACHE"]) not in flavors
        assert "/src/slmflow" not in flavors


def test_the_person_sees_steps_a_table_and_what_to_type_next(packaged: Packaged) -> None:
    output = packaged.output
    for text in (
        "transformers_pipeline: phi3-demo on cpu",
        "check it in a fresh process: 'What is the capital of Spain?' -> 'Madrid'",
        "models:/phi3-demo/2  alias candidate-custom_onnx-cpu",
        "run serve -P model_uri=models:/phi3-demo@candidate-custom_onnx-cpu",
    ):
        assert text in output
    table = [
        line for line in output.splitlines() if line.startswith(("model  ", "custom_onnx v2 "))
    ]
    assert len(table) == 2
    assert all(len(line.rstrip()) <= 80 for line in table)
    assert "Warning" not in output
