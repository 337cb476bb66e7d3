"""``evaluate`` with the URIs that people have: aliases, runs of one model, typing errors."""

import pytest

from tests.conftest import Workplace

CANDIDATE = "models:/phi3-demo@candidate-custom_onnx-cpu"


def test_aliases_and_versions_are_compared_and_linked_to_their_models(scratch: Workplace) -> None:
    result = scratch.mlflow_run(
        "evaluate", f"models={CANDIDATE},models:/phi3-demo/1", "data.limit=2"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "int4" in result.stdout
    assert "float32" in result.stdout
    version = scratch.client.get_model_version("phi3-demo", "2")
    model = scratch.client.get_logged_model(version.source.removeprefix("models:/"))
    assert "exact_match" in {metric.key for metric in model.metrics or []}


def test_by_default_the_newest_of_each_kind_are_compared(scratch: Workplace) -> None:
    result = scratch.mlflow_run("evaluate", "data.limit=2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "transformers_pipeline v1" in result.stdout
    assert "custom_onnx v2" in result.stdout


def test_search_options_of_evaluate_hold_for_every_model(scratch: Workplace) -> None:
    one_token = ["search=greedy", "search.max_new_tokens=1", "data.limit=2"]
    result = scratch.mlflow_run("evaluate", f"models={CANDIDATE}", *one_token)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "side by side" not in result.stdout, "there is nothing beside one model"


@pytest.mark.parametrize("uri", ["phi3-demo/1", "models:/nope/1", "models:/phi3-demo@nobody"])
def test_a_uri_that_names_no_model_is_told_in_one_message(scratch: Workplace, uri: str) -> None:
    result = scratch.script("evaluate", f"models=['{uri}']", "data.limit=2")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1


def test_a_prompt_model_leaves_the_chat_alias_alone(scratch: Workplace) -> None:
    result = scratch.script("custom_onnx", "task=prompt")
    assert result.returncode == 0, result.stderr
    chat = scratch.client.get_model_version_by_alias("phi3-demo", "candidate-custom_onnx-cpu")
    prompt = scratch.client.get_model_version_by_alias(
        "phi3-demo", "candidate-custom_onnx-cpu-prompt"
    )
    assert chat.tags["task"] == "chat"
    assert prompt.tags["task"] == "prompt"
    assert prompt.tags["quantisation"].startswith("block_size=32 accuracy_level=4")


def test_a_run_that_failed_on_its_config_says_why(workplace: Workplace) -> None:
    workplace.mlflow_run("custom_onnx", "search.temprature=1")
    (run,) = workplace.client.search_runs(
        [e.experiment_id for e in workplace.client.search_experiments()]
    )
    assert "did you mean temperature?" in run.data.tags["slmflow.error"]
