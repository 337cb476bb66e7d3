"""Log a model to MLflow without ever holding its weights in memory.

Both kinds go through ``Model.log`` with a flavour of our own whose ``save_model`` calls pyfunc's:
that is the documented interface for flavours, and it leaves out the validation that would load
the model into this process. The check in a fresh process (``check.py``) takes its place.
"""

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
from mlflow.models import Model, infer_signature
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA
from mlflow.types.schema import AnyType

import slmflow
from slmflow.answering.model_files import CONTENTS, about, contents
from slmflow.machine import installed_version
from slmflow.packaging.transformers_flavor import (
    TOKENIZER,
    tokenizer_files,
    transformers_flavor,
    with_tokenizer,
)
from slmflow.served.transformers_model import WEIGHTS
from slmflow.served.weights import DECLARED, MANIFEST, Manifest
from slmflow.sources import LocalModel
from slmflow.weights.place import place
from slmflow.weights.take import take

CHAT = "llm/v1/chat"
ARTIFACT = "model"
SERVED = Path(slmflow.__file__).parent / "served"
CARD = "model_card.md"  # MLflow's name for it


@dataclass(frozen=True)
class Packaging:
    """What to log: the weights, the ``model_config``, the question of the input example.

    ``own``: the model's folder gets copies of the large files, rather than links or a reference.
    """

    weights: LocalModel
    settings: Mapping[str, Any]
    question: str
    name: str
    own: bool = False


@dataclass(frozen=True)
class Logged:
    uri: str  # models:/m-...
    manifest: Manifest


def log_transformers(packaging: Packaging, dtype: str) -> Logged:
    """A checkpoint as MLflow's transformers flavour, served by this project's chat contract.

    ``mlflow.transformers.load_model`` returns the pipeline.
    """

    flavor = transformers_flavor(packaging.weights, dtype)
    manifest = with_tokenizer(take(packaging.weights, WEIGHTS))

    def save_model(path: str, mlflow_model: Model, **_: Any) -> None:
        mlflow_model.metadata = {"task": CHAT, DECLARED: manifest.digest}
        mlflow_model.add_flavor("transformers", **flavor, code="code")
        with travelling_code() as code:
            mlflow.pyfunc.save_model(
                path=path,
                mlflow_model=mlflow_model,
                loader_module="slmflow.served.transformers_model",
                streamable=True,
                model_config=dict(packaging.settings),
                code_paths=[str(code)],
                input_example=chat_example(packaging.question),
                signature=CHAT_SIGNATURE,
                pip_requirements=requirements("torch", "transformers", "safetensors", "jinja2"),
            )
        _leave_checks_to_the_contract(mlflow_model)
        small = manifest.small
        copy_files(packaging.weights, small, Path(path) / WEIGHTS)
        copy_files(packaging.weights, tokenizer_files(small), Path(path) / TOKENIZER)
        _finish(Path(path), mlflow_model, packaging, manifest)

    return Logged(_log(packaging.name, save_model).model_uri, manifest)


def log_onnx(packaging: Packaging, task: str, package: str) -> Logged:
    """An ONNX model folder as an MLflow Python model, logged as code."""

    manifest = take(packaging.weights, f"artifacts/{ARTIFACT}")

    def save_model(path: str, mlflow_model: Model, **_: Any) -> None:
        chat = task == "chat"
        example = chat_example(packaging.question) if chat else {"prompt": packaging.question}
        mlflow_model.metadata = {**({"task": CHAT} if chat else {}), DECLARED: manifest.digest}
        with travelling_code() as code, tempfile.TemporaryDirectory() as folder:
            files = copy_files(packaging.weights, manifest.small, Path(folder) / ARTIFACT)
            mlflow.pyfunc.save_model(
                path=path,
                mlflow_model=mlflow_model,
                python_model=str(SERVED / "onnx_model.py"),
                artifacts={ARTIFACT: str(files)},
                model_config=dict(packaging.settings),
                code_paths=[str(code)],
                input_example=example,
                signature=CHAT_SIGNATURE if chat else infer_signature(example, "an answer"),
                pip_requirements=requirements(package, "jinja2", "tokenizers"),
            )
        # MLflow writes the folders of the machine that packaged the model, and needs neither.
        flavor = mlflow_model.flavors["python_function"]
        flavor["artifacts"][ARTIFACT]["uri"] = packaging.weights.source
        flavor["model_code_path"] = Path(flavor["model_code_path"]).name
        if chat:
            _leave_checks_to_the_contract(mlflow_model)
        _finish(Path(path), mlflow_model, packaging, manifest)

    return Logged(_log(packaging.name, save_model).model_uri, manifest)


MORE_FIELDS = (
    *(ColSpec(DataType.long, name, required=False) for name in ("max_completion_tokens", "seed")),
    *(
        ColSpec(AnyType(), name, required=False)
        for name in (
            *("response_format", "stream_options", "logprobs", "top_logprobs", "logit_bias"),
            *("tool_choice", "parallel_tool_calls", "functions", "function_call", "audio"),
            *("modalities", "reasoning_effort", "verbosity", "service_tier", "store", "prediction"),
        )
    ),
)
"""Fields of OpenAI's request that MLflow's own schema lacks. MLflow drops what a schema does not
name before the model can honour or refuse it."""

CHAT_SIGNATURE = mlflow.models.ModelSignature(
    inputs=Schema([*CHAT_MODEL_INPUT_SCHEMA.inputs, *MORE_FIELDS]), outputs=CHAT_MODEL_OUTPUT_SCHEMA
)
"""The signature of MLflow's task llm/v1/chat, and every other field of the protocol."""


def chat_example(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 32}


def requirements(*packages: str) -> list[str]:
    """Exact versions that any index has: a build's local label (2.13.0+cpu) is left out."""
    pinned = []
    for package in ("mlflow", "numpy", "pandas", *packages):
        version = installed_version(package)
        assert version is not None, f"{package} runs here, so it is installed"
        pinned.append(f"{package}=={version.split('+')[0]}")
    return pinned


@contextmanager
def travelling_code() -> Iterator[Path]:
    """A folder ``slmflow`` that holds only what a packaged model needs."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "slmflow"
        package.mkdir()
        shutil.copy2(slmflow.__file__, package / "__init__.py")
        shutil.copytree(SERVED, package / "served", ignore=shutil.ignore_patterns("__pycache__"))
        yield package


def copy_files(weights: LocalModel, names: Iterable[str], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        shutil.copyfile(weights.path / name, folder / name)
    return folder


def _log(name: str, save_model: Callable[..., None]) -> ModelInfo:
    return Model.log(
        artifact_path=None,
        name=name,
        flavor=SimpleNamespace(save_model=save_model),
        validate_serving_input=False,  # it would load the weights here
    )


def _leave_checks_to_the_contract(mlflow_model: Model) -> None:
    """MLflow hands ``predict`` what it was given, as it does for models with type hints.

    Its own check makes a table of the rows first, and refuses those that leave fields out.
    """
    mlflow_model.signature = copy.deepcopy(CHAT_SIGNATURE)
    mlflow_model.signature._is_signature_from_type_hint = True


def _finish(path: Path, mlflow_model: Model, packaging: Packaging, manifest: Manifest) -> None:
    """Add the large files, the manifest, licence and card of the weights."""
    placed = place(manifest, mlflow_model.artifact_path, path, packaging.own)
    placed.write(path)
    for notice in packaging.weights.notices:
        shutil.copyfile(notice, path / (CARD if notice.name == "README.md" else notice.name))
    mlflow_model.artifact_path = None  # the place where this machine keeps its artifacts
    mlflow_model.model_size_bytes = _size(path, placed)
    mlflow_model.save(str(path / MLMODEL_FILE_NAME))
    mlflow.log_metric("size_bytes", mlflow_model.model_size_bytes)
    mlflow.log_artifact(str(path / MANIFEST))
    mlflow.log_dict(contents(path, about(path)), CONTENTS)
    mlflow.set_tag(DECLARED, manifest.digest)


def _size(path: Path, manifest: Manifest) -> int:
    """Bytes of the model with every file in its place."""
    here = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    sizes = {name: (path / name).stat().st_size for name in here}
    return sum((sizes | {name: about.size for name, about in manifest.places.items()}).values())
