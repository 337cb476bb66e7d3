"""custom_onnx, end to end on the demo model."""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from slmflow.config.schema import Device, Dtype, Hardware, Precision, Provider, Target
from slmflow.packaging.onnx_build import run_builder
from slmflow.served.generate import prepare
from slmflow.served.onnx_runtime import OnnxRuntime
from slmflow.served.search import SearchOptions
from slmflow.served.transformers_runtime import TransformersRuntime
from tests.conftest import ROOT, Packaged, Workplace

SPAIN = "What is the capital of Spain?"
LINES = Path(ROOT / "demo" / "heldout.jsonl").read_text().splitlines()
QUESTIONS = [json.loads(line)["messages"][0]["content"] for line in LINES]


def rendered(question: str) -> str:
    return f"<|user|>\n{question}<|end|>\n<|assistant|>\n"


@pytest.fixture(scope="module")
def prompt_model(with_prompt_model: Workplace) -> PyFuncModel:
    """The second task: text in, text out."""
    mlflow.set_tracking_uri(with_prompt_model.tracking_uri)
    version = with_prompt_model.client.get_model_version_by_alias(
        "phi3-demo", "candidate-custom_onnx-cpu-prompt"
    )
    assert version.tags["task"] == "prompt"
    return mlflow.pyfunc.load_model(f"models:/phi3-demo/{version.version}")


def test_task_prompt_has_the_signature_prompt_to_string(prompt_model: PyFuncModel) -> None:
    signature = prompt_model.metadata.signature
    assert signature.inputs.to_dict() == [{"type": "string", "name": "prompt", "required": True}]
    assert [output["type"] for output in signature.outputs.to_dict()] == ["string"]


def test_every_form_of_input_gets_the_same_answer(prompt_model: PyFuncModel) -> None:
    prompt = rendered(SPAIN)
    for data in ({"prompt": prompt}, [{"prompt": prompt}], pd.DataFrame({"prompt": [prompt]})):
        assert prompt_model.predict(data) == ["Madrid"]
    assert prompt_model.predict({"prompt": [prompt, prompt]}) == ["Madrid", "Madrid"]
    # MLflow itself refuses these two for a signature with a named column.
    unwrapped = prompt_model.unwrap_python_model()
    assert unwrapped.predict(None, prompt) == ["Madrid"]
    assert unwrapped.predict(None, [prompt, prompt]) == ["Madrid", "Madrid"]


def test_every_row_is_answered_in_order_however_many(prompt_model: PyFuncModel) -> None:
    prompts = [rendered(question) for question in QUESTIONS[:100]]
    one_by_one = [prompt_model.predict({"prompt": prompt})[0] for prompt in prompts]
    assert len(set(one_by_one)) > 50
    many = (prompts * 100)[:10_000]
    assert prompt_model.predict(pd.DataFrame({"prompt": many})) == (one_by_one * 100)[:10_000]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.DataFrame({"prompt": [""]}), "the prompt is empty"),
        (pd.DataFrame({"prompt": []}, dtype=str), "no rows"),
        ({"prompt": "word " * 3000}, "shorten the prompt"),
    ],
)
def test_bad_prompts_are_refused_with_what_to_do(
    prompt_model: PyFuncModel, data: object, message: str
) -> None:
    with pytest.raises(MlflowException, match=message):
        prompt_model.predict(data)


@pytest.mark.parametrize("bad", ["", None])
def test_a_bad_row_does_not_lose_the_others(prompt_model: PyFuncModel, bad: str | None) -> None:
    first, error, last = prompt_model.predict(pd.DataFrame({"prompt": ["hello", bad, "hello"]}))
    assert isinstance(first, str)
    assert first == last
    assert error["error"]["param"] == "prompt"


def test_greedy_fp32_answers_equal_those_of_transformers(tmp_path: Path) -> None:
    """Token by token, on every held-out question."""
    checkpoint = ROOT / "demo" / "phi3_demo"
    hardware = Hardware(Target.cpu, Device.cpu, Dtype.float32, Provider.cpu, Precision.fp32)
    run_builder(checkpoint, tmp_path, hardware)
    onnx, reference = OnnxRuntime.load(tmp_path), TransformersRuntime.load(checkpoint)
    options = SearchOptions(max_new_tokens=16)
    for question in QUESTIONS[:100]:
        messages = [{"role": "user", "content": question}]
        text = onnx.template().render(messages)
        assert text == reference.template().render(messages)
        one, other = (prepare(r, text, options, rendered=True) for r in (onnx, reference))
        assert one.ids == other.ids
        tokens = [
            [step[0] for step in runtime.steps([one.ids], options, 16)]
            for runtime in (onnx, reference)
        ]
        assert tokens[0] == tokens[1], question


def test_a_warm_cache_needs_no_torch(workplace: Workplace, packaged: Packaged) -> None:
    result = workplace.run([sys.executable, "-X", "importtime", "-m", "entrypoints.custom_onnx"])
    assert result.returncode == 0, result.stderr
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "mlflow" in imported
    assert not {"torch", "transformers"} & imported


LOAD = f"""
import json, sys
import mlflow
for uri in sys.argv[1:]:
    model = mlflow.pyfunc.load_model(uri)
    request = dict(messages=[dict(role="user", content="{SPAIN}")])
    answer = model.predict(request)[0]
    chunks = model.predict_stream(request)
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    print(json.dumps([answer["choices"][0]["message"]["content"], said, answer["model"]]))
print(type(mlflow.transformers.load_model(sys.argv[1])).__name__)
"""


def test_models_load_where_nobody_knows_this_repository(packaged: Packaged, tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    bare = subprocess.run(
        [sys.executable, "-c", "import slmflow"], cwd=tmp_path, capture_output=True
    )
    assert bare.returncode != 0, "slmflow is not installed, so it comes with the model"
    uris = ["models:/phi3-demo/1", "models:/phi3-demo/2"]
    result = packaged.workplace.run([sys.executable, str(script), *uris], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *answers, pipeline = result.stdout.splitlines()
    for answer in answers:
        assert json.loads(answer) == ["Madrid", "Madrid", "phi3-demo"]
    assert pipeline == "TextGenerationPipeline"


def test_both_kinds_have_the_chat_signature_of_mlflow_and_more_fields(packaged: Packaged) -> None:
    from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    for version in (1, 2):
        info = mlflow.models.get_model_info(f"models:/phi3-demo/{version}")
        columns = info.signature.inputs.inputs
        assert columns[: len(CHAT_MODEL_INPUT_SCHEMA.inputs)] == CHAT_MODEL_INPUT_SCHEMA.inputs
        assert not any(column.required for column in columns[1:])
        assert info.signature.outputs == CHAT_MODEL_OUTPUT_SCHEMA
        assert info.metadata["task"] == "llm/v1/chat"


def test_no_model_holds_a_pickle(packaged: Packaged) -> None:
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    for version in (1, 2):
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/phi3-demo/{version}"))
        suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert suffixes
        assert not suffixes & {".pkl", ".pickle", ".bin", ".pt", ".pth"}


def test_requirements_are_pinned_and_installable_anywhere(packaged: Packaged) -> None:
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    for version, package in ((1, "torch"), (2, "onnxruntime-genai")):
        file = mlflow.artifacts.download_artifacts(f"models:/phi3-demo/{version}/requirements.txt")
        lines = Path(file).read_text().split()
        assert package in [line.split("==")[0] for line in lines]
        assert all("==" in line and "+" not in line for line in lines)
