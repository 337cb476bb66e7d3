"""Chat templates: messages to the prompt text that a model was trained on.

Rendered with jinja2 under the rules of transformers (``utils/chat_template_utils.py``), so that
the text equals ``tokenizer.apply_chat_template`` without importing transformers or torch. The
ONNX runtime's own template engine rejects templates that transformers accepts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class TemplateError(ValueError):
    """The model has no chat template, or the template refuses the messages."""


@dataclass(frozen=True)
class ChatTemplate:
    source: str
    special_tokens: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate":
        """Read the template beside the tokenizer: chat_template.jinja, or tokenizer_config.json."""
        config_file = folder / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(config_file.read_text("utf-8"))
        template_file = folder / "chat_template.jinja"
        if template_file.is_file():
            source: Any = template_file.read_text("utf-8")
        else:
            source = config.get("chat_template")
        if isinstance(source, list):  # several named templates
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        if not source:
            raise TemplateError(
                f"{config_file.name} holds no chat template, so the model cannot chat: "
                "package it with task=prompt"
            )
        return cls(source, _special_tokens(config))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that asks for the assistant's next turn.

        Raises ``TemplateError`` with the template's own words where it refuses the messages.
        """
        try:
            return _compiled(self.source).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self.special_tokens,
            )
        # Templates are programs: those of the hub add texts to None, divide, index.
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TemplateError(
                f"the model's chat template refuses the messages: {error}"
            ) from None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, Mapping):  # a serialised AddedToken
            value = value["content"]
        if value is not None:
            tokens[name] = value
    return tokens


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    """Once a template: for every row it was a fortieth of the time of an answer."""
    return _environment().from_string(source)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's text for training; it renders what it encloses."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)  # what is set inside stays inside


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which no model was trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
