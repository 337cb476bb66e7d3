"""Every entry point that works on a packaged model, with canaries wherever a user can put a secret:
none is in what it leaves behind, nor in what it says. The bytes of all of it are searched."""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Packaged, Workplace, copy_store
from tests.server import start_server
from tests.test_endpoint import Response, error, loopback
from tests.test_secrets import CANARY, PLANTED, TYPED, canaries

ONNX = "model_uri=models:/phi3-demo/2"
VARIABLES = {
    **PLANTED,
    **{
        name: f"{CANARY}-{name.lower()}"
        for name in (
            *("PGPASSWORD", "DB_PASS", "SMTP_PASS", "OPENAI_KEY", "KAGGLE_KEY", "OPENAI_API_KEYS"),
            *("REDIS_AUTH", "JWT", "HF_TOKEN_1", "MY_TOKEN_VALUE", "GITHUB_PAT", "OPENAI_API_KEY"),
        )
    },
    "PIP_EXTRA_INDEX_URL": f"https://bob:{CANARY}-pip@host.invalid/simple",
    "HTTPS_PROXY": f"http://bob:{CANARY}-proxy@127.0.0.1:9",
}
AT_HOME = {
    ".netrc": f"machine host.invalid login bob password {CANARY}-netrc\n",
    ".git-credentials": f"https://bob:{CANARY}-git@host.invalid\n",
    ".cache/huggingface/token": f"hf_{CANARY}{'b' * 20}",
    ".databrickscfg": f"[DEFAULT]\nhost = https://host.invalid\ntoken = {CANARY}-databricks\n",
}


@dataclass(frozen=True)
class Place:
    """The packaged models in a store, a cache, a home and an output folder of one's own."""

    folder: Path
    workplace: Workplace

    def script(self, entry_point: str, *arguments: str) -> str:
        """What it printed."""
        result: subprocess.CompletedProcess[str] = self.workplace.script(entry_point, *arguments)
        told = result.stdout + result.stderr
        assert result.returncode == 0, told
        return told

    def left(self) -> list[Path]:
        """Every file that is there, but those that hold the planted secrets."""
        planted = {self.folder / "home" / name for name in AT_HOME}
        return [f for f in self.folder.rglob("*") if f.is_file() and f not in planted]


@pytest.fixture
def place(packaged: Packaged, tmp_path: Path) -> Place:
    for name, content in AT_HOME.items():
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text(content)
    store = copy_store(packaged.workplace, tmp_path)
    store.client.create_experiment("canaries", artifact_location=(tmp_path / "runs").as_uri())
    environment = {
        **store.environment,
        **VARIABLES,
        "MLFLOW_EXPERIMENT_NAME": "canaries",
        "HOME": str(tmp_path / "home"),
        "SLMFLOW_CACHE": str(tmp_path / "cache"),
    }
    return Place(tmp_path, Workplace(tmp_path, environment))


def evaluate(place: Place) -> str:
    """Beside a model an endpoint that repeats in its refusals what it was given, and more."""
    repeated = f"refused {VARIABLES['OPENAI_API_KEY']}; upstream had api_key={CANARY}-upstream"

    def answer(_: object) -> Response:
        return error(400, repeated)

    with loopback(answer) as server:
        return place.script(
            "evaluate",
            f"models=[models:/phi3-demo/2,'{server.uri}']",
            *("data.limit=3", "speed=none", "score.likelihood_rows=0", "parity.rows=0"),
            *("score.resamples=200", TYPED),
        )


def predict(place: Place) -> str:
    rows = place.folder / "rows.jsonl"
    rows.write_text('{"prompt": "Hello"}\n{"messages": []}\n')
    out = place.folder / "out"
    return place.script("predict", ONNX, f"input={rows}", f"output={out}", TYPED)


def transformers_pipeline(place: Place) -> str:
    return place.script("transformers_pipeline", TYPED)


def export(place: Place) -> str:
    return place.script("export", ONNX, f"output={place.folder / 'exported'}", TYPED)


def rerun(place: Place) -> str:
    version = place.workplace.client.get_model_version("phi3-demo", "1")
    return place.script("rerun", f"run_id={version.run_id}")


def materialise(place: Place) -> str:
    return place.script("materialise", ONNX)


def serve(place: Place) -> str:
    """A caller with the key, and one who takes another secret for it."""
    with start_server(place.workplace, ONNX, TYPED) as server:
        body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
        for key in (VARIABLES["SLMFLOW_API_KEY"], VARIABLES["JWT"]):
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            asked = urllib.request.Request(
                f"{server.address}/v1/chat/completions?sig={CANARY}", body, headers
            )
            try:
                urllib.request.urlopen(asked).close()
            except urllib.error.HTTPError as refused:
                assert refused.code == 401
                assert canaries(refused.read()) == []
        server.stop()
        return server.output()


STORIES: Mapping[str, Callable[[Place], str]] = {
    story.__name__: story
    for story in (evaluate, predict, transformers_pipeline, export, rerun, materialise, serve)
}


@pytest.mark.parametrize("name", STORIES)
def test_no_canary_is_left_behind_or_told(name: str, place: Place) -> None:
    told = STORIES[name](place)
    assert canaries(told.encode()) == []
    (experiment,) = place.workplace.client.search_experiments(filter_string="name = 'canaries'")
    found = place.workplace.client.search_runs([experiment.experiment_id])
    assert found, "what was run is recorded below the folder that is searched"
    left = place.left()
    assert place.folder / "mlflow.db" in left
    assert [file for file in left if CANARY in str(file)] == []
    assert [file for file in left if any(map(canaries, contents(file)))] == []


def contents(file: Path) -> Iterator[bytes]:
    """As it lies there, and what is packed in it."""
    yield file.read_bytes()
    if file.suffix == ".parquet":
        yield json.dumps(pq.read_table(file).to_pylist(), default=str).encode()
