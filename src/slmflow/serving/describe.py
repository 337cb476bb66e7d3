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


def described_paths(names: Iterable[str], choices: int | None) -> dict[str, dict[str, Any]]:
    """Every path. ``names``: what requests may call the model; ``choices``: answers that one
    request may ask for."""
    model = {"enum": sorted(names), "description": "As /v1/models lists it; may be left out"}
    n = {**_whole(1, min(choices or 128, 128)), "default": 1}
    common = {"model": _or_null(model), "n": _or_null(n), **_options()}
    chat = {
        "messages": {"type": "array", "minItems": 1, "items": MESSAGE},
        **common,
        "response_format": _or_null(RESPONSE_FORMAT),
    }
    text = {
        "prompt": {
            "anyOf": [TEXT, {"type": "array", "minItems": 1, "items": TEXT}],
            "description": "As it stands, without the chat template",
        },
        **common,
    }
    row = _closed(chat, ["messages"])
    # A row that is no such request gets an error object in its place, so the call is no error.
    several = {"type": "array", "minItems": 1, "items": {}}
    rows = {"anyOf": [row, _object({"inputs": several})]}
    named = {"name": "model", "in": "path", "required": True, "schema": model}
    return {
        "/v1/chat/completions": {
            "post": _completing("Answer a conversation", chat, ["messages"], COMPLETION)
        },
        "/v1/completions": {
            "post": _completing("Go on with a text", text, ["prompt"], TEXT_COMPLETION)
        },
        "/v1/models": {"get": _openai("The one model", _json(MODELS))},
        "/v1/models/{model}": {
            "get": {**_openai("The one model", _json(MODEL), "404"), "parameters": [named]}
        },
        "/health": {"get": _mlflow("Whether the model can answer", HEALTH)},
        "/ping": {"get": _mlflow("Whether the model can answer", HEALTH)},
        "/metrics": {"get": _mlflow("What Prometheus reads", {"200": _text("Metrics")})},
        "/invocations": {
            "post": {
                **_mlflow("Answer rows, each with its own parameters", INVOCATIONS),
                "requestBody": {"content": {"application/json": {"schema": rows}}},
            }
        },
    }


def _completing(
    summary: str, properties: dict[str, Any], required: list[str], response: Any
) -> dict[str, Any]:
    schema = _closed(properties, required)
    answer = {
        "description": "The answer; with stream, server-sent events of its chunks",
        "content": {
            "application/json": {"schema": response},
            "text/event-stream": {"schema": _object({"data": {"type": "string"}})},
        },
    }
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {**_openai(summary, answer, *ERRORS), "requestBody": body}


def _openai(summary: str, answer: dict[str, Any], *errors: str) -> dict[str, Any]:
    refused = {status: {**_json(ERROR), "description": ERRORS[status]} for status in errors}
    return {"summary": summary, "tags": ["OpenAI"], "responses": {"200": answer, **refused}}


def _mlflow(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "tags": ["MLflow"], "responses": responses}


def _json(schema: Any) -> dict[str, Any]:
    return {"description": "", "content": {"application/json": {"schema": schema}}}


def _text(told: str) -> dict[str, Any]:
    return {"description": told, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _options() -> dict[str, Any]:
    ignored = {"description": "Passes; says nothing about the answer"}
    options = {
        "temperature": _number(0, 100, "0 is greedy"),
        "top_p": {**_number(0, 1, "above 0"), "exclusiveMinimum": 0},
        "top_k": _whole(0, 2**31 - 1),
        "max_tokens": _whole(1, 2**31),
        "max_completion_tokens": _whole(1, 2**31),
        "stop": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}},
            ]
        },
        "seed": _whole(0, 2**31 - 1),
        "frequency_penalty": _number(-2, 2, "0 changes nothing"),
        "presence_penalty": _number(-2, 2, "0 changes nothing"),
        "stream": {"type": "boolean"},
        "stream_options": _closed({"include_usage": {"type": "boolean"}}, []),
    }
    nullable = {name: _or_null(schema) for name, schema in options.items()}
    return {**nullable, "user": ignored, "metadata": ignored}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A field that is null counts as absent."""
    return {"anyOf": [schema, {"type": "null"}]}


def _number(least: float, most: float, told: str) -> dict[str, Any]:
    return {"type": "number", "minimum": least, "maximum": most, "description": told}


def _whole(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def _closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """No field beside these."""
    return _object(properties, required) | {"additionalProperties": False}


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names}


PART = _closed({"type": {"const": "text"}, "text": TEXT}, ["type", "text"])
MESSAGE = _closed(
    {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [TEXT, {"type": "array", "minItems": 1, "items": PART}]},
        "name": {"description": "Passes; says nothing about the answer"},
    },
    ["role", "content"],
)
RESPONSE_FORMAT = {
    "anyOf": [
        _object({"type": {"enum": ["text", "json_object"]}}),
        _object(
            {
                "type": {"const": "json_schema"},
                "json_schema": _object({"schema": {"type": "object"}}),
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
MODEL = _object(
    {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": COUNT,
        "owned_by": {"type": "string"},
    }
)
MODELS = _object({"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}})
HEALTH = {"200": _text("It can"), "503": _text("It is being loaded")}
INVOCATIONS = {
    "200": {**_json({}), "description": "The answers; a row that has none is an error object"},
    **{
        status: {**_json({"type": "object"}), "description": ERRORS[status]}
        for status in ("400", "404", "429", "500", "503", "504")
    },
    "401": {**_json(ERROR), "description": ERRORS["401"]},
    "413": {**_json(ERROR), "description": ERRORS["413"]},
    "415": {"description": "The content type is none that MLflow reads"},
}
