"""lm-evaluation-harness over packaged models: its figures are those of the model, by other means.

Needs requirements-lm-eval.txt; without it, only what is said then is tested.
"""

import functools
import importlib.util
import json
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from slmflow.answering.ask import AskError
from slmflow.errors import ConfigError
from slmflow.evaluation.harness import HarnessResult, log_harness, run_harness
from tests.conftest import ROOT, Packaged

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: pip install -r requirements-lm-eval.txt",
)
slow = pytest.mark.slow

TASKS = ROOT / "demo" / "lm_eval"
ROWS = 24
TRANSFORMERS, ONNX = "models:/phi3-demo/1", "models:/phi3-demo/2"
TEXT = "The capital of Spain is Madrid. A school bus is yellow."


@dataclass
class Ran:
    uri: str
    result: HarnessResult
    told: list[tuple[int, int]]

    def samples(self, task: str) -> list[dict[str, Any]]:
        return sorted(self.result.raw["samples"][task], key=lambda sample: int(sample["doc_id"]))


def run(uri: str, tasks: list[str], include: Path, **options: Any) -> Ran:
    told: list[tuple[int, int]] = []
    result = run_harness(
        uri, tasks, ROWS, include, {}, lambda done, of: told.append((done, of)), **options
    )
    return Ran(uri, result, told)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, packaged: Packaged) -> Iterator[Packaged]:
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(ROOT)
        yield packaged


@pytest.fixture(scope="module", params=[TRANSFORMERS, ONNX], ids=["transformers", "onnx"])
def demo(request: pytest.FixtureRequest, store: Packaged) -> Ran:
    return run(request.param, ["slmflow_demo", "slmflow_demo_choice"], TASKS)


def own_task(folder: Path, name: str, **settings: Any) -> None:
    (folder / "text.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "text.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{text}}",
        "metadata": {"version": 1.0},
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, store: Packaged) -> Ran:
    """Tasks without chat template: a text's perplexity, and an answer that must end at a text."""
    folder = tmp_path_factory.mktemp("tasks")
    own_task(
        folder,
        "own_text",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        metric_list=[{"metric": "byte_perplexity"}],
    )
    own_task(
        folder,
        "own_until",
        output_type="generate_until",
        doc_to_text="<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n",
        generation_kwargs={"until": ["rid"], "max_gen_toks": 8},
        metric_list=[{"metric": "exact_match"}],
    )
    return run(TRANSFORMERS, ["own_text", "own_until"], folder)


def test_without_the_harness_a_task_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"arc_easy.*pip install -r requirements-lm-eval\.txt"):
        run_harness(ONNX, ["arc_easy"], None, None, {})


@needs_harness
def test_an_include_that_is_no_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lm_eval\.include is .*nowhere"):
        run_harness(ONNX, ["arc_easy"], None, tmp_path / "nowhere", {})


@slow
@needs_harness
def test_exact_match_is_what_the_model_itself_answers(demo: Ran) -> None:
    lines = (ROOT / "demo" / "heldout.jsonl").read_text("utf-8").splitlines()[:ROWS]
    rows = [json.loads(line) for line in lines]
    asked = [{"messages": row["messages"], "max_tokens": 32} for row in rows]
    replies = mlflow.pyfunc.load_model(demo.uri).predict(asked)
    answers = [reply["choices"][0]["message"]["content"] for reply in replies]
    right = [
        plain(answer) in map(plain, row["references"])
        for answer, row in zip(answers, rows, strict=True)
    ]
    assert [sample["resps"][0][0] for sample in demo.samples("slmflow_demo")] == answers
    assert demo.result.metrics["lm_eval/slmflow_demo/exact_match"] == sum(right) / ROWS
    assert demo.result.metrics["lm_eval/slmflow_demo/exact_match_stderr"] > 0


def plain(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))


@slow
@needs_harness
def test_a_choice_is_the_likeliest_one(demo: Ran) -> None:
    right = 0
    for sample in demo.samples("slmflow_demo_choice"):
        nats = [score for ((score, _),) in sample["resps"]]
        right += nats.index(max(nats)) == sample["doc"]["answer"]
    assert demo.result.metrics["lm_eval/slmflow_demo_choice/acc"] == right / ROWS
    assert right > ROWS / 2, "chance is a quarter"


@slow
@needs_harness
def test_choices_have_the_log_likelihood_that_the_checkpoint_gives(demo: Ran) -> None:
    if demo.uri == ONNX:
        pytest.skip("its weights are four bits wide")
    for sample in demo.samples("slmflow_demo_choice")[:6]:
        for (prompt, choice), ((nats, greedy),) in zip(
            sample["arguments"], sample["resps"], strict=True
        ):
            # The harness counts white space at the end of a prompt to what follows it.
            scored, likeliest = checkpoint_nats(prompt.rstrip(), prompt + choice)
            assert nats == pytest.approx(scored, abs=1e-3)
            assert greedy == likeliest


@functools.cache
def checkpoint() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ROOT / "demo" / "phi3_demo"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return model, AutoTokenizer.from_pretrained(folder)


def checkpoint_nats(context: str, whole: str) -> tuple[float, bool]:
    """Of what ``whole`` has after ``context``: by transformers and torch alone."""
    import torch

    model, tokenizer = checkpoint()
    begin = [tokenizer.bos_token_id] if not context else []
    ids = begin + tokenizer.encode(whole, add_special_tokens=False)
    start = len(begin) or len(tokenizer.encode(context, add_special_tokens=False))
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
    targets = torch.tensor(ids[start:])
    nats = logits.log_softmax(-1)[range(len(targets)), targets].sum()
    return float(nats), bool((logits.argmax(-1) == targets).all())


@slow
@needs_harness
def test_a_text_without_context_is_scored_from_its_first_token(own: Ran) -> None:
    (sample,) = own.samples("own_text")
    nats, _ = checkpoint_nats("", TEXT)
    assert sample["resps"][0][0] == pytest.approx(nats, abs=1e-3)


@slow
@needs_harness
def test_an_answer_ends_before_the_task_s_stop_text(own: Ran) -> None:
    (sample,) = own.samples("own_until")
    assert sample["resps"] == [["Mad"]]


@slow
@needs_harness
def test_the_chat_format_is_the_task_s_to_ask_for(demo: Ran, own: Ran) -> None:
    chat, text = demo.samples("slmflow_demo")[0], own.samples("own_until")[0]
    assert chat["arguments"][0][0].startswith("<|user|>\n")
    assert text["arguments"][0][0].count("<|user|>") == 1, "its own, and none around it"


@slow
@needs_harness
def test_every_request_is_counted(demo: Ran) -> None:
    choices = 4 * ROWS
    assert demo.told.count((ROWS, ROWS)) == 1
    assert demo.told.count((choices, choices)) == 1
    assert len(demo.told) == ROWS + choices


@slow
@needs_harness
def test_figures_and_samples_are_logged_to_the_active_run(own: Ran) -> None:
    with mlflow.start_run() as active:
        log_harness(own.result)
    logged = mlflow.get_run(active.info.run_id).data.metrics
    assert logged == dict(own.result.metrics)
    assert "lm_eval/own_text/byte_perplexity" in logged
    folder = f"runs:/{active.info.run_id}/lm_eval"
    results = mlflow.artifacts.load_dict(f"{folder}/results.json")
    samples = mlflow.artifacts.load_dict(f"{folder}/samples.json")
    assert results["results"]["own_until"]["exact_match,none"] == 0.0
    assert samples["own_until"][0]["resps"] == [["Mad"]]


@slow
@needs_harness
def test_a_task_that_is_misspelt_is_told_with_the_nearest_name(store: Packaged) -> None:
    with pytest.raises(ConfigError, match="no task 'arc_esy'; did you mean arc_easy"):
        run(ONNX, ["arc_esy"], TASKS)


@slow
@needs_harness
def test_what_a_task_asks_of_the_search_is_not_ignored(store: Packaged, tmp_path: Path) -> None:
    own_task(
        tmp_path,
        "own_option",
        output_type="generate_until",
        generation_kwargs={"until": ["."], "guidance_scale": 2},
        metric_list=[{"metric": "exact_match"}],
    )
    with pytest.raises(AskError, match="guidance_scale"):
        run(ONNX, ["own_option"], tmp_path)
