"""A packaged checkpoint is what ``mlflow.transformers`` would have made of it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from slmflow.config.schema import Dtype
from slmflow.errors import SourceError
from slmflow.packaging.transformers_flavor import TOKENIZER, transformers_flavor
from slmflow.sources import LocalModel, find_checkpoint
from tests.conftest import ROOT, Packaged, Workplace

DEMO = ROOT / "demo" / "phi3_demo"


def mlflows_own(folder: Path, dtype: str) -> dict[str, Any]:
    """The flavour that MLflow's own function writes of the demo checkpoint."""
    mlflow.transformers.save_model(
        transformers_model=str(DEMO),
        path=str(folder),
        task="llm/v1/chat",
        torch_dtype=f"torch.{dtype}",
        pip_requirements=["transformers"],
        code_paths=[str(ROOT / "demo" / "README.md")],
    )
    about = yaml.safe_load((folder / "MLmodel").read_text())
    flavor: dict[str, Any] = about["flavors"]["transformers"]
    return flavor


def test_the_flavour_is_the_one_that_mlflow_writes(packaged: Packaged, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    theirs = mlflows_own(tmp_path / "theirs", "float32")
    ours = mlflow.models.get_model_info("models:/phi3-demo/1").flavors["transformers"]
    assert ours.pop("source_model_name") == "demo/phi3_demo"
    assert theirs.pop("source_model_name") == str(DEMO)
    loaded = mlflow.transformers.load_model("models:/phi3-demo/1").tokenizer
    assert (ours.pop("tokenizer_type"), type(loaded).__name__) == (
        "AutoTokenizer",
        theirs.pop("tokenizer_type"),
    )
    assert ours == theirs


def test_the_tokenizer_that_mlflow_loads_reads_as_the_checkpoints_own(packaged: Packaged) -> None:
    from transformers import AutoTokenizer

    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    loaded = mlflow.transformers.load_model("models:/phi3-demo/1").tokenizer
    own = AutoTokenizer.from_pretrained(DEMO)
    assert loaded.get_vocab() == own.get_vocab()
    assert loaded.special_tokens_map == own.special_tokens_map
    chat = [{"role": "user", "content": "¿Cuál es la capital de España? 🙂"}]
    assert loaded.apply_chat_template(chat) == own.apply_chat_template(chat)


def test_the_tokenizers_files_are_those_of_the_checkpoint(packaged: Packaged) -> None:
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    model = Path(mlflow.artifacts.download_artifacts("models:/phi3-demo/1"))
    names = {file.name for file in (model / TOKENIZER).iterdir()}
    assert names == {
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")
    }
    for name in names:
        assert (model / TOKENIZER / name).read_bytes() == (DEMO / name).read_bytes()


def test_packaging_a_checkpoint_imports_neither_torch_nor_transformers(
    workplace: Workplace, packaged: Packaged
) -> None:
    entry = "entrypoints.transformers_pipeline"
    result = workplace.run([sys.executable, "-X", "importtime", "-m", entry])
    assert result.returncode == 0, result.stderr
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "mlflow" in imported
    assert not {"torch", "transformers"} & imported


@pytest.mark.parametrize("named", [None, [], "Phi3ForCausalLM", [None]])
def test_a_checkpoint_that_names_no_class_is_refused(tmp_path: Path, named: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": named}))
    model: LocalModel = find_checkpoint(str(folder), None, print)
    with pytest.raises(SourceError, match=r'names no class.*\["Phi3ForCausalLM"\]'):
        transformers_flavor(model, Dtype.float32.value)
