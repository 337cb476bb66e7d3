"""The server's own OpenAPI description of OpenAI's paths.

The contract itself is ``slmflow.served``, which the worker runs; this says the same in JSON schema,
and the tests hold one against the other.
"""

from collections.abc import Iterable
from typing import Any

TAGS = [
    {"name": "OpenAI", "description": "As https://platform.openai.com/docs/api-reference has them"},
    {"name": "MLflow", "description": "As `mlflow models serve` has them"},
]
TEXT = {"type": "string", "pattern": r"\S"}
ERRORS = {
    "400": "The request cannot be honoured; the message names the field",
    "401": "The API key is missing or wrong",
    "404": "The model is not served here",
    "413": "The request is larger than serve.max_body_bytes",
    "429": "serve.queue requests are waiting; see Retry-After",
    "500": "The model failed",
    "503": "The model's process died, or the server is stopping",
    "504": "serve.timeout is over",
}


def openai_paths(names: Iterable[str], choices: int | None) -> dict[str, dict[str, Any]]:
    """The two POST operations. ``choices``: answers that one request may ask for."""
    model = {"enum": sorted(names), "description": "As /v1/models lists it; may be left out"}
    n = {**_whole(1, min(choices or 128, 128)), "default": 1}
    common = {"model": model, "n": n, **_options()}
    chat = {
        "messages": {"type": "array", "minItems": 1, "items": MESSAGE},
        **common,
        "response_format": RESPONSE_FORMAT,
    }
    text = {
        "prompt": {
            "anyOf": [TEXT, {"type": "array", "minItems": 1, "maxItems": 8, "items": TEXT}],
            "description": "As it stands, without the chat template",
        },
        **common,
    }
    return {
        "/v1/chat/completions": {
            "post": _operation("chat", "Answer a conversation", chat, ["messages"], COMPLETION)
        },
        "/v1/completions": {
            "post": _operation("text", "Go on with a text", text, ["prompt"], TEXT_COMPLETION)
        },
    }


def _operation(
    name: str, summary: str, properties: dict[str, Any], required: list[str], response: Any
) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    errors = {
        status: {"description": told, "content": {"application/json": {"schema": ERROR}}}
        for status, told in ERRORS.items()
    }
    return {
        "operationId": name,
        "summary": summary,
        "tags": ["OpenAI"],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {
                "description": "The answer; with stream, server-sent events of its chunks",
                "content": {
                    "application/json": {"schema": response},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            **errors,
        },
    }


def _options() -> dict[str, Any]:
    return {
        "temperature": _number(0, 100, "0 is greedy"),
        "top_p": {**_number(0, 1, "above 0"), "exclusiveMinimum": 0},
        "top_k": _whole(0, 2**31 - 1),
        "max_tokens": _whole(1, 2**31),
        "stop": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}},
            ]
        },
        "seed": _whole(0, 2**31 - 129),
        "frequency_penalty": _number(-2, 2, "0 changes nothing"),
        "presence_penalty": _number(-2, 2, "0 changes nothing"),
        "stream": {"type": "boolean"},
        "user": {"type": "string"},
        "metadata": {"type": "object"},
    }


def _number(least: float, most: float, told: str) -> dict[str, Any]:
    return {"type": "number", "minimum": least, "maximum": most, "description": told}


def _whole(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names}


PART = _object({"type": {"const": "text"}, "text": TEXT}) | {"additionalProperties": False}
MESSAGE = _object(
    {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [TEXT, {"type": "array", "minItems": 1, "items": PART}]},
        "name": {"type": "string"},
    },
    ["role", "content"],
) | {"additionalProperties": False}
RESPONSE_FORMAT = {
    "anyOf": [
        _object({"type": {"enum": ["text", "json_object"]}}),
        _object(
            {
                "type": {"const": "json_schema"},
                "json_schema": _object({"name": {"type": "string"}, "schema": {"type": "object"}}),
            }
        ),
    ],
    "description": "json_object and json_schema need an ONNX model",
}
COUNT = {"type": "integer", "minimum": 0}
USAGE = _object({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
FINISH = {"enum": ["stop", "length"]}


def _completion(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return _object(
        {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": COUNT,
            "model": {"type": "string"},
            "choices": {"type": "array", "minItems": 1, "items": choice},
            "usage": USAGE,
        }
    )


COMPLETION = _completion(
    "chat.completion",
    _object(
        {
            "index": COUNT,
            "message": _object({"role": {"const": "assistant"}, "content": {"type": "string"}}),
            "finish_reason": FINISH,
        }
    ),
)
TEXT_COMPLETION = _completion(
    "text_completion",
    _object({"index": COUNT, "text": {"type": "string"}, "finish_reason": FINISH}),
)
ERROR = _object(
    {
        "error": _object(
            {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            }
        )
    }
)
