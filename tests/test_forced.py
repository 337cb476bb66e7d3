"""What models think of given answers, and what is found of real ones that differ.

The demo model in both runtimes and every precision, and copies of it with one part broken.
"""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slmflow.config.schema import Device, Dtype, Hardware, Precision, Provider, Target
from slmflow.evaluation.parity import ROUNDING, Forced, Observation, compare
from slmflow.evaluation.results import Cause, Parity
from slmflow.packaging.onnx_build import BUILDER, build
from slmflow.served.forced import (
    answer_ids,
    divergence,
    greedy,
    log_likelihood,
    log_probabilities,
    prompt_of,
)
from slmflow.served.onnx_runtime import OnnxRuntime
from slmflow.served.packaged import PackagedModel
from slmflow.served.request import RequestError
from slmflow.served.runtime import LogitsUnavailable, Runtime
from slmflow.served.search import SearchOptions
from slmflow.served.transformers_runtime import TransformersRuntime
from slmflow.sources import find_checkpoint
from tests.conftest import ROOT
from tests.fakes import CHAT_TEMPLATE, EOS, FakeRuntime, last_user_text

CHECKPOINT = ROOT / "demo" / "phi3_demo"
LINES = (ROOT / "demo" / "heldout.jsonl").read_text().splitlines()[:30]
QUESTIONS = [json.loads(line)["messages"][0]["content"] for line in LINES]
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def folders(shared_cache: Path) -> dict[Precision, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLMFLOW_CACHE", str(shared_cache))
        checkpoint = find_checkpoint(str(CHECKPOINT), None, print)
        return {
            precision: build(checkpoint, hardware(precision), print)[0].path
            for precision in (Precision.fp32, Precision.int8, Precision.int4)
        }


def hardware(precision: Precision) -> Hardware:
    return Hardware(Target.cpu, Device.cpu, Dtype.float32, Provider.cpu, precision)


@pytest.fixture(scope="module")
def reference() -> PackagedModel:
    return packaged(TransformersRuntime.load(CHECKPOINT))


@pytest.fixture(scope="module")
def onnx(folders: dict[Precision, Path]) -> dict[Precision, PackagedModel]:
    return {name: packaged(OnnxRuntime.load(folder)) for name, folder in folders.items()}


def packaged(runtime: Runtime, task: str = "chat") -> PackagedModel:
    return PackagedModel(runtime, {"task": task, "model": "demo", "max_new_tokens": NEW_TOKENS})


def rows(questions: Sequence[str]) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": question}]} for question in questions]


# Logits.


@pytest.mark.parametrize("last", [1, 2, 5, None])
def test_both_runtimes_give_the_same_logits(
    reference: PackagedModel, onnx: dict[Precision, PackagedModel], last: int | None
) -> None:
    for row in rows(QUESTIONS[:10]):
        _, ids = prompt_of(reference, row)
        one, other = (
            model.runtime.logits(ids, last or len(ids))
            for model in (reference, onnx[Precision.fp32])
        )
        assert one.shape == other.shape == (last or len(ids), 2048)
        assert one.dtype == other.dtype == np.float32
        assert np.abs(one - other).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "rounding"),
    # Quantised activations: one token is multiplied otherwise than many.
    [("transformers", 1e-4), ("fp32", 1e-4), ("int4", 0.1)],
)
def test_logits_tell_the_next_token_and_do_not_depend_on_how_many_are_asked_for(
    reference: PackagedModel, onnx: dict[Precision, PackagedModel], name: str, rounding: float
) -> None:
    model = reference if name == "transformers" else onnx[Precision(name)]
    options = SearchOptions(max_new_tokens=1)
    for row in rows(QUESTIONS[:10]):
        _, ids = prompt_of(model, row)
        ((token,),) = model.runtime.steps([ids], options, 1)
        every = model.runtime.logits(ids, len(ids))
        assert int(every[-1].argmax()) == token
        for last in (1, 3):
            assert np.allclose(model.runtime.logits(ids, last), every[-last:], atol=rounding)


@pytest.mark.parametrize("name", ["transformers", "onnx", "fake"])
def test_no_more_logits_than_there_are_tokens_and_context(
    reference: PackagedModel, onnx: dict[Precision, PackagedModel], name: str
) -> None:
    models: dict[str, Runtime] = {
        "transformers": reference.runtime,
        "onnx": onnx[Precision.fp32].runtime,
        "fake": FakeRuntime(context_length=1024),
    }
    runtime = models[name]
    assert runtime.logits([5] * 1024, 2).shape[0] == 2
    with pytest.raises(LogitsUnavailable, match="1025 tokens are more than the model's context"):
        runtime.logits([5] * 1025, 2)
    for last in (0, 4):
        with pytest.raises(ValueError, match="allowed: 1 to 3"):
            runtime.logits([5, 6, 7], last)


class OlderArchitecture:
    """A model that cannot be told how many logits to keep."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.config, self.generation_config = model.config, model.generation_config
        self.device = model.device

    def forward(self, input_ids: Any, use_cache: bool) -> Any:
        return self._model(input_ids=input_ids, use_cache=use_cache)

    __call__ = forward


def test_an_architecture_that_gives_all_logits_gives_the_same(reference: PackagedModel) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)
    older = TransformersRuntime(OlderArchitecture(model.eval()), tokenizer, CHECKPOINT)
    ids = list(range(5, 25))
    assert np.allclose(older.logits(ids, 4), reference.runtime.logits(ids, 4), atol=1e-4)


def test_a_pruned_fp16_model_gives_the_last_logits_and_says_why_no_others(
    tmp_path: Path, reference: PackagedModel
) -> None:
    command = [sys.executable, "-m", BUILDER, "-i", str(CHECKPOINT), "-o", str(tmp_path / "model")]
    command += ["-p", "fp16", "-e", "cuda", "-c", str(tmp_path / "scratch"), "--extra_options"]
    command += ["hf_token=false", "hf_remote=false", "prune_lm_head=true"]
    subprocess.run(command, check=True, capture_output=True)
    pruned = OnnxRuntime.load(tmp_path / "model")
    ids = list(range(5, 25))
    last = pruned.logits(ids, 1)
    assert last.dtype == np.float32
    assert np.allclose(last, reference.runtime.logits(ids, 1), atol=0.1)
    with pytest.raises(LogitsUnavailable, match="prune_lm_head"):
        pruned.logits(ids, 2)


# Probabilities.


def test_log_probabilities_are_those_of_each_token_after_the_ones_before_it(
    reference: PackagedModel,
) -> None:
    prompt, answer = list(range(5, 15)), [20, 21, 22]
    found = log_probabilities(reference.runtime, prompt, answer)
    assert found.dtype == np.float32
    assert np.allclose(np.exp(found.astype(np.float64)).sum(axis=-1), 1, atol=1e-5)
    for place in range(len(answer)):
        (logits,) = reference.runtime.logits([*prompt, *answer[:place]], 1)
        assert np.allclose(found[place] - found[place][0], logits - logits[0], atol=1e-4)


def test_the_log_likelihood_is_the_sum_over_the_answers_tokens(reference: PackagedModel) -> None:
    prompt, answer = list(range(5, 15)), [20, 21, 22]
    each = log_probabilities(reference.runtime, prompt, answer)
    nats, tokens = log_likelihood(reference.runtime, prompt, answer)
    assert tokens == 3
    assert nats == pytest.approx(sum(each[i, token] for i, token in enumerate(answer)))


def test_the_right_answer_is_likelier_than_a_wrong_one(reference: PackagedModel) -> None:
    text, ids = prompt_of(reference, {"prompt": "What is the capital of Spain?"})
    likelihoods = [
        log_likelihood(reference.runtime, ids, answer_ids(reference, text, ids, answer))[0]
        for answer in ("Madrid", "Paris", "a banana")
    ]
    assert likelihoods == sorted(likelihoods, reverse=True)
    assert likelihoods[0] > math.log(0.5)


@pytest.mark.parametrize(("prompt", "answer"), [([], [1]), ([1], [])])
def test_a_prompt_and_an_answer_are_needed(prompt: list[int], answer: list[int]) -> None:
    with pytest.raises(ValueError, match="needs at least one"):
        log_probabilities(FakeRuntime(), prompt, answer)


def test_a_model_without_logits_says_so() -> None:
    with pytest.raises(LogitsUnavailable):
        log_probabilities(FakeRuntime(pruned=True), [65], [66, 67])


LOGITS = arrays(np.float64, (3, 5), elements=st.floats(-30, 30))


def normalised(logits: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    found: np.ndarray[Any, Any] = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return found.astype(np.float32)


@given(LOGITS, LOGITS)
def test_the_divergence_is_never_negative_and_0_from_itself(
    one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]"
) -> None:
    p, q = normalised(one), normalised(other)
    assert (divergence(p, q).kl >= 0).all()
    itself = divergence(p, p)
    assert itself.kl.tolist() == [0, 0, 0]
    assert itself.top1_equal.all()


def test_the_divergence_is_kullbacks_and_leiblers() -> None:
    p = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    q = np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    found = divergence(p, q)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.kl == pytest.approx([expected, 0])
    assert found.top1_equal.tolist() == [False, True]


def test_a_token_that_the_reference_rules_out_adds_nothing() -> None:
    p, q = np.array([[0.0, -np.inf]]), np.log(np.array([[0.5, 0.5]]))
    assert divergence(p, q).kl == pytest.approx([math.log(2)])
    assert divergence(q, p).kl.tolist() == [math.inf]


@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (3,)])
def test_other_answers_and_vocabularies_are_not_compared(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the same two sizes"):
        divergence(np.zeros((3, 5)), np.zeros(shape))


# Prompts and answers.


def test_greedy_tokens_go_up_to_the_end_token_and_no_further() -> None:
    runtime = FakeRuntime()
    assert greedy(runtime, list(b"ab"), 10) == [*b"ba", EOS]
    assert greedy(runtime, list(b"ab"), 2) == list(b"ba")
    assert greedy(FakeRuntime(context_length=3), list(b"ab"), 10) == list(b"b")
    assert greedy(FakeRuntime(context_length=2), list(b"ab"), 10) == []
    assert runtime.closed == 2


@pytest.mark.parametrize("row", [{"messages": rows(["Hi"])[0]["messages"]}, {"prompt": "Hi"}])
def test_a_chat_model_reads_a_row_as_it_reads_a_request(row: dict[str, Any]) -> None:
    runtime = FakeRuntime(last_user_text)
    model = packaged(runtime)
    text, ids = prompt_of(model, row)
    assert (text, ids) == ("user: Hi\nassistant: ", list(b"user: Hi\nassistant: "))
    model.predict(rows(["Hi"]))
    assert runtime.batches == [[text]]


def test_a_prompt_model_reads_a_prompt_as_it_stands_and_messages_in_its_chat_format() -> None:
    model = packaged(FakeRuntime(), task="prompt")
    assert prompt_of(model, {"prompt": "Hi"}) == ("Hi", list(b"Hi"))
    assert prompt_of(model, rows(["Hi"])[0])[0] == "user: Hi\nassistant: "


def test_a_prompt_model_without_a_chat_format_reads_messages_as_they_stand(tmp_path: Path) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    model = packaged(TransformersRuntime.load(folder), task="prompt")
    assert prompt_of(model, rows(["Hello there"])[0])[0] == "Hello there"


@pytest.mark.parametrize(("task", "row"), [("chat", {"prompt": ""}), ("prompt", {"prompt": " "})])
def test_a_row_that_the_model_refuses_is_refused(task: str, row: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        prompt_of(packaged(FakeRuntime(), task=task), row)


@pytest.mark.parametrize("name", ["transformers", "onnx"])
def test_an_answers_tokens_follow_those_of_its_prompt(
    reference: PackagedModel, onnx: dict[Precision, PackagedModel], name: str
) -> None:
    model = reference if name == "transformers" else onnx[Precision.fp32]
    text, ids = prompt_of(model, {"prompt": "What is the capital of Spain?"})
    for answer in ("Madrid", " Madrid", "the city of Madrid, in Spain.", "日本語 😀"):
        found = answer_ids(model, text, ids, answer)
        assert [*ids, *found] == model.runtime.encode(text + answer, rendered=True)
        assert model.runtime.decode(found) == answer
    assert answer_ids(model, text, ids, "") == []


def test_an_answer_that_grows_together_with_its_prompt_is_encoded_by_itself(
    reference: PackagedModel,
) -> None:
    model = packaged(reference.runtime, task="prompt")
    text, ids = prompt_of(model, {"prompt": "What is the cap"})
    whole = model.runtime.encode("What is the capital", rendered=False)
    assert whole[: len(ids)] != ids, "a token reaches across"
    found = answer_ids(model, text, ids, "ital")
    assert found == model.runtime.encode("ital", rendered=True)
    assert model.runtime.decode(found) == "ital"


# Real models that differ.


@dataclass(frozen=True)
class Seen:
    observations: list[Observation]
    log_probs: list["np.ndarray[Any, Any]"]


def observe(model: PackagedModel) -> Seen:
    observations, log_probs = [], []
    for row in rows(QUESTIONS):
        text, ids = prompt_of(model, row)
        answer = greedy(model.runtime, ids, NEW_TOKENS)
        observations.append(Observation(text, ids, answer, model.runtime.decode(answer)))
        log_probs.append(log_probabilities(model.runtime, ids, answer))
    return Seen(observations, log_probs)


def found_of(candidate: PackagedModel, reference: Seen) -> Parity:
    forced = []
    for shown, theirs in zip(reference.observations, reference.log_probs, strict=True):
        assert shown.prompt_ids is not None
        assert shown.answer_ids is not None
        own = log_probabilities(candidate.runtime, shown.prompt_ids, shown.answer_ids)
        same, kl = divergence(theirs, own)
        forced.append(Forced(len(kl), int(same.sum()), float(kl.sum()), float(kl.max())))
    own_rows = observe(candidate).observations
    return compare(reference.observations, own_rows, forced, QUESTIONS)


@pytest.fixture(scope="module")
def seen(reference: PackagedModel) -> Seen:
    return observe(reference)


def test_equal_weights_in_the_other_runtime_have_no_cause_to_differ(
    seen: Seen, onnx: dict[Precision, PackagedModel]
) -> None:
    found = found_of(onnx[Precision.fp32], seen)
    assert found.cause is Cause.none
    assert found.same_prompts == found.same_prompt_tokens == found.same_answers == len(QUESTIONS)
    assert found.top1_agreement == 1
    assert found.kl_mean is not None
    assert found.kl_mean < ROUNDING / 10
    assert (found.first_divergence, found.example) == (None, None)


def test_quantised_weights_are_the_cause_and_fewer_bits_are_further_away(
    seen: Seen, onnx: dict[Precision, PackagedModel]
) -> None:
    fp32, int8, int4 = (found_of(onnx[name], seen) for name in onnx)
    assert int8.cause is int4.cause is Cause.weights
    assert int4.same_prompt_tokens == len(QUESTIONS)
    assert (int4.kl_mean or 0) > (int8.kl_mean or 0) > 10 * ROUNDING > (fp32.kl_mean or 0)
    assert (int4.top1_agreement or 0) < (int8.top1_agreement or 0) <= 1
    assert "weights differ" in int4.words


def test_a_broken_chat_template_alone_is_told_from_the_weights(
    seen: Seen, folders: dict[Precision, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[Precision.fp32], tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", " "))
    found = found_of(packaged(OnnxRuntime.load(folder)), seen)
    assert found.cause is Cause.template
    assert found.same_prompts == 0
    assert found.top1_agreement == 1
    assert "template differs: 30 of 30 prompts" in found.words
    assert "<|end|>" in found.words
    assert "agree on the likeliest token in 100% of" in found.words
    assert "the template alone is the fault" in found.words


def test_a_broken_chat_template_does_not_hide_other_weights(
    seen: Seen, folders: dict[Precision, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[Precision.int4], tmp_path / "model")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    found = found_of(packaged(OnnxRuntime.load(folder)), seen)
    assert found.cause is Cause.template
    assert "weights differ as well" in found.words


def test_a_broken_tokenizer_is_told_from_the_template_and_the_weights(
    seen: Seen, tmp_path: Path
) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "model")
    file = folder / "tokenizer.json"
    settings = json.loads(file.read_text("utf-8"))
    settings["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(settings), "utf-8")
    found = found_of(packaged(TransformersRuntime.load(folder)), seen)
    assert found.cause is Cause.tokenizer
    assert found.same_prompts == len(QUESTIONS)
    assert found.same_prompt_tokens is not None
    assert found.same_prompt_tokens < len(QUESTIONS)
    assert "the tokenizer alone is the fault" in found.words
