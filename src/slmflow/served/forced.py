"""Teacher forcing: what a model thinks of an answer that it is given, token by token.

For comparing models. All of it asks a loaded model and changes nothing.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from slmflow.served import chat
from slmflow.served.packaged import CHAT_TASK, PackagedModel
from slmflow.served.runtime import Runtime
from slmflow.served.search import SearchOptions
from slmflow.served.template import TemplateError

Array = np.ndarray[Any, Any]


class Divergence(NamedTuple):
    """Of a model from the reference, one value a token of the answer.

    ``top1_equal``: is the likeliest token the same? ``kl``: KL(reference || own) in nats.
    """

    top1_equal: Array  # bool
    kl: Array  # float64, 0 or more


def log_probabilities(
    runtime: Runtime, prompt_ids: Sequence[int], answer_ids: Sequence[int]
) -> Array:
    """Of every token, at each place of the answer, the prompt and the answer before it given.

    float32, a row a token of the answer, a column a token of the vocabulary. Raises
    ``LogitsUnavailable``; ``ValueError`` where the prompt or the answer has no tokens.
    """
    if not prompt_ids or not answer_ids:
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens and the answer {len(answer_ids)}; each "
            "needs at least one"
        )
    ids = [*prompt_ids, *answer_ids[:-1]]  # what comes after the last one is no part of it
    logits = runtime.logits(ids, len(answer_ids)).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits.astype(np.float32)


def log_likelihood(
    runtime: Runtime, prompt_ids: Sequence[int], answer_ids: Sequence[int]
) -> tuple[float, int]:
    """The answer's log-likelihood after the prompt, in nats, and its tokens. Raises as
    ``log_probabilities``."""
    rows = log_probabilities(runtime, prompt_ids, answer_ids)
    own = rows[np.arange(len(answer_ids)), list(answer_ids)]
    return float(own.sum(dtype=np.float64)), len(answer_ids)


def divergence(reference_log_probs: Array, own_log_probs: Array) -> Divergence:
    """Two models' ``log_probabilities`` of the same answer, compared.

    Raises ``ValueError`` where the shapes differ: another answer, or another vocabulary.
    """
    shapes = reference_log_probs.shape, own_log_probs.shape
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ValueError(
            f"log-probabilities of shapes {shapes[0]} and {shapes[1]}; allowed: the same two "
            "sizes, tokens of the answer and tokens of the vocabulary"
        )
    reference, own = reference_log_probs.astype(np.float64), own_log_probs.astype(np.float64)
    p = np.exp(reference)
    # Where p is 0 the logarithm may be -inf, and the term is 0 by definition.
    change = np.subtract(reference, own, out=np.zeros_like(p), where=p > 0)
    # By rounding, two equal distributions can be a hair less than 0 apart.
    kl = np.maximum((p * change).sum(axis=-1), 0)
    return Divergence(reference.argmax(axis=-1) == own.argmax(axis=-1), kl)


def greedy(runtime: Runtime, prompt_ids: Sequence[int], new_tokens: int) -> list[int]:
    """The model's own likeliest tokens, the end token last where it ended by itself.

    None where the prompt fills the model's context.
    """
    room = min(new_tokens, runtime.context_length - len(prompt_ids))
    if room < 1:
        return []
    made: list[int] = []
    with closing(runtime.steps([prompt_ids], SearchOptions(max_new_tokens=room), room)) as steps:
        for (token,) in steps:
            made.append(int(token))
            if token in runtime.eos_ids:
                break
    return made


def prompt_of(packaged: PackagedModel, row: Mapping[str, Any]) -> tuple[str, list[int]]:
    """What the model reads when it is asked a row, as text and as tokens.

    A row is a request, ``{"messages": [...]}`` or ``{"prompt": "..."}``. A chat model is asked a
    prompt as a user's message; a model of task prompt is asked messages in its own chat format, or
    as they stand, a line each, where it has none. Raises ``RequestError``.
    """
    if packaged.task == CHAT_TASK:
        body = {"messages": row.get("messages") or _user(row["prompt"])}
        (prompt,) = packaged.chat_job(body).prompts
        messages = chat.parse_request(body, packaged.search).messages
        return packaged.render(list(messages)), list(prompt.ids)
    text = str(row["prompt"]) if not row.get("messages") else _plain(packaged, row["messages"])
    (prompt,) = packaged.text_job({"prompt": [text]}).prompts
    return text, list(prompt.ids)


def answer_ids(
    packaged: PackagedModel, text: str, prompt_ids: Sequence[int], answer: str
) -> list[int]:
    """An answer's tokens as they follow a prompt (``prompt_of``), without an end token.

    Prompt and answer are encoded together and the prompt's tokens taken off, as
    lm-evaluation-harness does (``lm_eval/api/model.py``, ``_encode_pair``), but no white space
    moves from the prompt to the answer: the model is asked with all of its prompt. Where a token
    reaches across the boundary, the answer is encoded by itself.
    """
    if not answer:
        return []
    whole = packaged.runtime.encode(text + answer, rendered=packaged.task == CHAT_TASK)
    if whole[: len(prompt_ids)] == list(prompt_ids):
        return whole[len(prompt_ids) :]
    return packaged.runtime.encode(answer, rendered=True)  # without the tokens that begin a text


def _user(prompt: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


def _plain(packaged: PackagedModel, messages: Sequence[Mapping[str, Any]]) -> str:
    try:
        return packaged.render([dict(message) for message in messages])
    except (TemplateError, OSError):
        return "\n".join(str(message["content"]) for message in messages)
