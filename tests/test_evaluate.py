"""``evaluate`` with the models, questions and mishaps that people have."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run

from tests.conftest import ROOT, Packaged, Workplace
from tests.foreign import save_chat_model, save_text_model
from tests.server import Server
from tests.tracking_server import tracking_server

CANDIDATE = "models:/phi3-demo@candidate-custom_onnx-cpu"
REFERENCE = "models:/phi3-demo/1"
BRIEF = ("speed=none", "score.likelihood_rows=0", "parity.rows=0", "score.resamples=200")
"""Quality alone."""


def newest_run(workplace: Workplace, name: str = "evaluate phi3-demo") -> Run:
    experiment = workplace.client.get_experiment_by_name("tests")
    assert experiment is not None
    found = workplace.client.search_runs(
        [experiment.experiment_id], f"attributes.run_name = '{name}'", max_results=1
    )
    return found[0]


def artifact(workplace: Workplace, run: Run, path: str) -> Path:
    uri = f"{run.info.artifact_uri}/{path}"
    return Path(download_artifacts(uri, tracking_uri=workplace.tracking_uri))


def evaluation(workplace: Workplace) -> dict[str, Any]:
    told = artifact(workplace, newest_run(workplace), "evaluation.json").read_text("utf-8")
    return dict(json.loads(told))


def test_aliases_and_versions_are_compared_in_every_respect(scratch: Workplace) -> None:
    result = scratch.mlflow_run(
        "evaluate",
        f"models={REFERENCE},{CANDIDATE}",
        *("data.limit=8", "speed=quick", "score.likelihood_rows=4", "parity.rows=4"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for shown in ("int4", "float32", "side by side", "too few rows", "weights"):
        assert shown in result.stdout
    reference, candidate = evaluation(scratch)["candidates"]
    assert [reference["label"], candidate["label"]] == [
        "transformers_pipeline v1",
        "custom_onnx v2",
    ]
    for figures in (reference["figures"], candidate["figures"]):
        for name in ("correct", "chrf", "perplexity", "decode_tokens_per_second", "size_bytes"):
            assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"]
        assert figures["peak_memory_bytes"]["value"] > 50e6
    (comparison,) = evaluation(scratch)["comparisons"]
    assert comparison["parity"]["cause"] == "weights"
    assert comparison["parity"]["same_prompts"] == 4
    assert comparison["ratios"]["decode_tokens_per_second"]["value"] > 0
    version = scratch.client.get_model_version("phi3-demo", "2")
    model = scratch.client.get_logged_model(version.source.removeprefix("models:/"))
    assert "exact_match" in {metric.key for metric in model.metrics or []}


def test_every_answer_with_its_scores_is_on_record(packaged: Packaged) -> None:
    workplace = packaged.workplace
    run = newest_run(workplace, "custom_onnx v2")
    rows = pq.read_table(artifact(workplace, run, "answers.parquet")).to_pylist()
    assert len(rows) == 6
    assert {"id", "question", "references", "answer", "correct", "token_f1"} <= rows[0].keys()
    traces = workplace.client.search_traces(
        locations=[run.info.experiment_id], run_id=run.info.run_id
    )
    answers = {trace.info.tags["row"]: json.loads(trace.data.response) for trace in traces}
    assert answers == {row["id"]: row["answer"] for row in rows}
    scores = {
        trace.info.tags["row"]: {one.name: one.value for one in trace.info.assessments}
        for trace in traces
    }
    assert all(scores[row["id"]]["correct"] == row["correct"] for row in rows)


def test_the_report_lies_with_the_run(packaged: Packaged) -> None:
    workplace = packaged.workplace
    run = newest_run(workplace)
    page = artifact(workplace, run, "report.html").read_text("utf-8")
    assert "custom_onnx v2" in page
    assert run.info.run_id in page
    assert "custom_onnx v2" in artifact(workplace, run, "report.md").read_text("utf-8")
    assert run.inputs.dataset_inputs[0].dataset.name == "heldout"


def test_by_default_the_newest_of_each_kind_are_compared(scratch: Workplace) -> None:
    result = scratch.mlflow_run("evaluate", "data.limit=2", *BRIEF)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "transformers_pipeline v1" in result.stdout
    assert "custom_onnx v2" in result.stdout


def test_search_options_of_evaluate_hold_for_every_model(scratch: Workplace) -> None:
    one_token = ["search=greedy", "search.max_new_tokens=1", "data.limit=2"]
    result = scratch.mlflow_run("evaluate", f"models={CANDIDATE}", *one_token, *BRIEF)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "side by side" not in result.stdout, "there is nothing beside one model"
    run = newest_run(scratch, "custom_onnx v2")
    rows = pq.read_table(artifact(scratch, run, "answers.parquet")).to_pylist()
    assert {row["completion_tokens"] for row in rows} == {1}


def test_a_second_evaluation_of_the_same_asks_nothing(scratch: Workplace) -> None:
    asked = (f"models=[{CANDIDATE}]", "data.limit=3", "search=sample", *BRIEF)
    scratch.script("evaluate", *asked)
    result = scratch.script("evaluate", *asked)
    assert "3 from before" in result.stdout
    result = scratch.script("evaluate", *asked, "search.seed=null")
    result = scratch.script("evaluate", *asked, "search.seed=null")
    assert "from before" not in result.stdout, "what is drawn anew each time is not repeated"


@pytest.mark.parametrize("uri", ["phi3-demo/1", "models:/nope/1", "models:/phi3-demo@nobody"])
def test_a_uri_that_names_no_model_is_told_in_one_message(scratch: Workplace, uri: str) -> None:
    result = scratch.script("evaluate", f"models=['{uri}']", "data.limit=2")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "models:/NAME/VERSION" in result.stderr


def test_rows_without_references_are_evaluated_by_what_they_have(
    scratch: Workplace, tmp_path: Path
) -> None:
    data = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "What is the capital of Spain?", "regex": "^M"}, {"prompt": "Hello"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = scratch.script(
        "evaluate", f"models=[{CANDIDATE}]", f"data.path={data}", "speed=none", "parity.rows=0"
    )
    assert result.returncode == 0, result.stderr
    assert evaluation(scratch)["dataset"]["name"] == "prompts"
    figures = evaluation(scratch)["candidates"][0]["figures"]
    assert figures["correct"]["rows"] == 1
    assert "reference_log_likelihood" not in figures
    assert "correct applies to 1 of the 2 rows" in " ".join(result.stdout.split())


def test_models_of_others_are_compared_by_their_answers(scratch: Workplace, tmp_path: Path) -> None:
    chat, text = save_chat_model(tmp_path / "chat"), save_text_model(tmp_path / "text")
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": word, "references": [word]}) + "\n" for word in "abcdefNO")
    )
    result = scratch.script(
        "evaluate", f"models=[{chat},{text}]", f"data.path={data}", *BRIEF[:2], "parity.rows=4"
    )
    assert result.returncode == 0, result.stderr
    echo, shouting = evaluation(scratch)["candidates"]
    assert echo["kind"] == shouting["kind"] == "mlflow"
    assert echo["figures"]["exact_match"]["value"] == 1
    assert evaluation(scratch)["comparisons"][0]["parity"]["cause"] == "unseen"


def test_a_row_that_a_model_dies_of_is_told_and_the_others_are_judged(
    scratch: Workplace, tmp_path: Path
) -> None:
    model = save_text_model(tmp_path / "text")
    words = [f"row {number}" for number in range(20)]
    words[17] = "DIE"
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": word, "references": [word]} for word in words]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = scratch.script("evaluate", f"models=[{model}]", f"data.path={data}", *BRIEF)
    assert result.returncode == 0, result.stderr
    figures = evaluation(scratch)["candidates"][0]["figures"]
    assert figures["errors"]["value"] == 1
    assert figures["exact_match"]["value"] == 19 / 20
    assert "exit code 7" in " ".join(result.stdout.split())


def test_a_scorer_that_raises_does_not_end_the_evaluation(
    scratch: Workplace, tmp_path: Path
) -> None:
    (tmp_path / "my_scorers.py").write_text(
        "def picky(answer, example):\n"
        "    if example.id.startswith('capital-'):\n"
        "        raise KeyError('no capitals')\n"
        "    return 0.5\n"
    )
    environment = {**scratch.environment, "PYTHONPATH": str(tmp_path)}
    chosen = [f"models=[{CANDIDATE}]", "data.limit=6", "score.own_metrics=[my_scorers:picky]"]
    result = Workplace(scratch.folder, environment).script("evaluate", *chosen, *BRIEF)
    assert result.returncode == 0, result.stderr
    assert "KeyError: 'no capitals'" in " ".join(result.stdout.split())
    (candidate,) = evaluation(scratch)["candidates"]
    assert candidate["figures"]["picky"]["value"] == 0.5
    assert candidate["failed_metrics"]["picky"]["rows"] == 6 - candidate["figures"]["picky"]["rows"]


def test_an_evaluation_killed_half_way_goes_on_where_it_was(
    scratch: Workplace, tmp_path: Path
) -> None:
    environment = {**scratch.environment, "SLMFLOW_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "entrypoints.evaluate", f"models=[{CANDIDATE}]"]
    command += ["data.limit=null", "ask.window_rows=4", "score.seed=0", *BRIEF]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    kept = tmp_path / "cache" / "answers"
    until = time.monotonic() + 120
    while time.monotonic() < until and _answered(kept) < 20:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    answered = _answered(kept)
    assert 20 <= answered < 400, "it was killed in the middle"
    result = Workplace(scratch.folder, environment).run(command)
    assert result.returncode == 0, result.stderr
    assert f"{answered} from before" in result.stdout
    assert evaluation(scratch)["dataset"]["rows"] == 400


def _answered(folder: Path) -> int:
    import sqlite3

    for file in folder.glob("*.db"):
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            (count,) = connection.execute("SELECT count(*) FROM replies").fetchone()
            return int(count)
        except sqlite3.OperationalError:
            return 0
        finally:
            connection.close()
    return 0


def test_an_endpoint_is_a_candidate_beside_its_own_model(
    scratch: Workplace, onnx_server: Server
) -> None:
    endpoint = f"openai:/{onnx_server.address}"
    result = scratch.script(
        "evaluate", f"models=[models:/phi3-demo/2,'{endpoint}']", "data.limit=6", *BRIEF
    )
    assert result.returncode == 0, result.stderr
    own, served = evaluation(scratch)["candidates"]
    assert served["kind"] == "endpoint"
    assert evaluation(scratch)["comparisons"][0]["agreement"] == 1
    assert served["figures"]["correct"] == own["figures"]["correct"]


SPEEDLESS = ("~gate.conditions.decode_tokens_per_second",)
GATE = ("gate=first", "~gate.conditions.first_token_seconds", *SPEEDLESS)
NO_WORSE = ("gate=standard", "~gate.conditions.peak_memory_bytes", *SPEEDLESS)


def test_the_first_champion_passes_on_its_own_figures_and_gets_the_alias(
    scratch: Workplace,
) -> None:
    chosen = [f"models=[{REFERENCE}]", "data.limit=20", *BRIEF, *GATE]
    dry = scratch.script("evaluate", *chosen)
    assert dry.returncode == 0, dry.stderr
    assert "would be promoted" in dry.stdout
    assert "gate.decision" not in scratch.client.get_model_version("phi3-demo", "1").tags
    result = scratch.script("evaluate", *chosen, "promote=true")
    assert result.returncode == 0, result.stderr
    champion = scratch.client.get_model_version_by_alias("phi3-demo", "champion-cpu")
    assert str(champion.version) == "1"
    assert champion.tags["gate.decision"] == "passed"
    assert champion.tags["data.digest"].startswith("sha256:")
    assert champion.tags["gate.run_id"] == newest_run(scratch).info.run_id
    assert "champion-cpu" in artifact(scratch, newest_run(scratch), "report.md").read_text("utf-8")


def test_a_refused_candidate_ends_with_2_and_names_what_failed(scratch: Workplace) -> None:
    scratch.client.set_registered_model_alias("phi3-demo", "champion-cpu", "1")
    chosen = [f"models=[{CANDIDATE}]", "data.limit=20", *BRIEF, *NO_WORSE, "promote=true"]
    result = scratch.script("evaluate", *chosen)
    assert result.returncode == 2, result.stderr
    assert "custom_onnx v2: correct may fall by at most 0.02" in result.stderr
    assert result.stderr.count("custom_onnx v2:") == 1, "the other conditions hold"
    run = newest_run(scratch)
    assert run.info.status == "FINISHED", "the evaluation worked"
    version = scratch.client.get_model_version("phi3-demo", "2")
    assert version.tags["gate.decision"] == "refused"
    champion = scratch.client.get_model_version_by_alias("phi3-demo", "champion-cpu")
    assert str(champion.version) == "1", "the incumbent, which was evaluated beside it"


def test_everything_goes_through_a_tracking_server(scratch: Workplace, tmp_path: Path) -> None:
    with tracking_server(scratch, tmp_path) as address:
        remote = Workplace(scratch.folder, {**scratch.environment, "MLFLOW_TRACKING_URI": address})
        chosen = [f"models=[{REFERENCE}]", "data.limit=20", *BRIEF, *GATE, "promote=true"]
        result = remote.script("evaluate", *chosen)
        assert result.returncode == 0, result.stderr
        run = newest_run(remote)
        place = f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert f"{place}/artifacts/report.html" in result.stdout
        assert evaluation(remote)["dataset"]["rows"] == 20
        child = newest_run(remote, "transformers_pipeline v1")
        traces = remote.client.search_traces(
            locations=[run.info.experiment_id], run_id=child.info.run_id
        )
        assert [trace.data.response for trace in traces].count('"Kuwait"') == 1
        champion = remote.client.get_model_version_by_alias("phi3-demo", "champion-cpu")
        assert str(champion.version) == "1"


def test_what_a_gate_can_never_judge_is_refused_before_anything_runs(scratch: Workplace) -> None:
    result = scratch.script("evaluate", f"models=[{CANDIDATE}]", "gate=standard", "speed=none")
    assert result.returncode == 1
    assert "speed=standard" in result.stderr
    scratch.client.set_registered_model_alias("phi3-demo", "champion-cpu", "1")
    result = scratch.script("evaluate", f"models=[{REFERENCE}]", "gate=standard")
    assert result.returncode == 1
    assert "models:/phi3-demo/1 is the champion itself" in result.stderr


def test_promote_without_a_gate_is_refused(scratch: Workplace) -> None:
    result = scratch.script("evaluate", "promote=true")
    assert result.returncode == 1
    assert "gate=standard" in result.stderr


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


def test_the_demo_model_shows_what_int4_costs_it(scratch: Workplace) -> None:
    chosen = [f"models=[{REFERENCE},{CANDIDATE}]", "data.limit=null", *BRIEF]
    result = scratch.script("evaluate", *chosen)
    assert result.returncode == 0, result.stderr
    found = evaluation(scratch)["comparisons"][0]["differences"]["correct"]
    change = found["change"]
    if found["verdict"] == "worse":
        assert change["high"] < 0
        assert found["p_value"] < 0.05
        assert "fewer questions right" in result.stdout.replace("\n  ", " ")
    else:  # another machine's arithmetic may be kinder to it
        assert found["verdict"] in ("no difference shown", "too few rows")
        assert change["low"] <= 0 <= change["high"]


@pytest.mark.parametrize(("precision", "cause"), [("fp32", "none"), ("int8", "weights")])
def test_parity_tells_equal_weights_from_quantised_ones(
    scratch: Workplace, precision: str, cause: str
) -> None:
    packaged = scratch.script("custom_onnx", f"hardware.precision={precision}")
    assert packaged.returncode == 0, packaged.stderr
    chosen = [f"models=[{REFERENCE},models:/phi3-demo/3]", "data.limit=10", *BRIEF[:2]]
    result = scratch.script("evaluate", *chosen)
    assert result.returncode == 0, result.stderr
    parity = evaluation(scratch)["comparisons"][0]["parity"]
    assert parity["cause"] == cause
    assert parity["same_prompts"] == parity["same_prompt_tokens"] == parity["rows"] == 10
    if precision == "fp32":
        assert parity["same_answers"] == 10
        assert parity["top1_agreement"] == 1


def test_a_broken_chat_template_is_called_that_and_not_blamed_on_the_weights(
    scratch: Workplace, tmp_path: Path
) -> None:
    source = tmp_path / "checkpoint"
    shutil.copytree(ROOT / "demo" / "phi3_demo", source)
    template = source / "chat_template.jinja"
    assert "<|end|>" in template.read_text("utf-8")
    template.write_text(template.read_text("utf-8").replace("<|end|>", "<|end|>\\nPlease: "))
    package = [f"model.source={source}", "hardware.precision=fp32", "model.probe.expect=null"]
    packaged = scratch.script("custom_onnx", *package)
    assert packaged.returncode == 0, packaged.stderr
    chosen = [f"models=[{REFERENCE},models:/phi3-demo/3]", "data.limit=10", *BRIEF[:2]]
    result = scratch.script("evaluate", *chosen)
    assert result.returncode == 0, result.stderr
    parity = evaluation(scratch)["comparisons"][0]["parity"]
    assert parity["cause"] == "template"
    assert parity["same_prompts"] == 0
    assert parity["top1_agreement"] == 1, "the weights are the same"
    page = artifact(scratch, newest_run(scratch), "report.html").read_text("utf-8")
    assert "chat template" in page
    assert "Please: " in page
