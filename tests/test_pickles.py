"""A model with pickles is refused by its names, before any of its code could run."""

from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from mlflow.pyfunc import PythonModel

from slmflow.answering.ask import AskError
from slmflow.answering.model_files import fetch, refuse_pickles
from tests.conftest import Packaged, Workplace
from tests.foreign import save_chat_model, save_text_model


class Planted(PythonModel):  # type: ignore[misc]
    """Who unpickles it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, (str(self.trace), "w"))  # type: ignore[return-value]

    def predict(self, context: object, model_input: list[str]) -> list[str]:
        return model_input


@pytest.fixture
def pickled(tmp_path: Path) -> str:
    """An MLflow model as most are logged: a class, pickled."""
    folder = tmp_path / "pickled"
    mlflow.pyfunc.save_model(
        folder, python_model=Planted(tmp_path / "ran"), pip_requirements=["mlflow"]
    )
    (tmp_path / "ran").unlink(missing_ok=True)  # MLflow itself may have loaded it
    return str(folder)


@pytest.mark.parametrize("entry_point", ["evaluate", "predict", "serve", "export"])
def test_an_entry_point_refuses_a_pickled_model_and_none_of_it_runs(
    entry_point: str, pickled: str, workplace: Workplace, tmp_path: Path
) -> None:
    arguments = {
        "evaluate": [f"models=[{pickled}]", "speed=none"],
        "predict": [f"model_uri={pickled}", "input=demo/heldout.jsonl", f"output={tmp_path}/out"],
        "serve": [f"model_uri={pickled}", "serve.port=0"],
        "export": [f"model_uri={pickled}", f"output={tmp_path}/out"],
    }
    result = workplace.script(entry_point, *arguments[entry_point])
    assert result.returncode == 1, result.stdout + result.stderr
    assert "holds pickles (python_model.pkl)" in result.stderr
    assert "log it as code" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "ran").exists()


def test_the_trap_works(pickled: str, tmp_path: Path) -> None:
    with suppress(Exception):  # what is unpickled is no model
        mlflow.pyfunc.load_model(pickled)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["data/model.pth", "a/b/model.joblib", "model/pytorch_model-00001.bin", "x.pickle"]
)
def test_a_pickle_is_found_wherever_it_lies(name: str, tmp_path: Path) -> None:
    save_chat_model(tmp_path / "model")
    file = tmp_path / "model" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    with pytest.raises(AskError, match=f"holds pickles .{name}."):
        fetch(str(tmp_path / "model"), tmp_path / "downloads")


def test_models_that_are_code_are_none(tmp_path: Path, packaged: Packaged) -> None:
    refuse_pickles(save_chat_model(tmp_path / "chat"))
    refuse_pickles(save_text_model(tmp_path / "text"))
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    for version in (1, 2):
        refuse_pickles(f"models:/phi3-demo/{version}")
