"""Chat templates: the text must be the one that transformers renders, whatever the template."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from slmflow.served.template import ChatTemplate, TemplateError

PHI3 = """\
{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {{- raise_exception('tools are not supported') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""  # noqa: E501

LLAMA = """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""  # noqa: E501

GENERATION = """\
{% for message in messages %}
{% if message.role == 'assistant' %}
<|{{ message.role }}|>
{% generation %}
{% set ending = '<|end|>' %}
{{ message.content }}{{ ending }}{{ loop.index }}
{%- endgeneration %}[{{ ending }}]
{% else %}
<|{{ message.role }}|>
{{ message.content }}{{ ending }}
{% endif %}
{% endfor %}
{{ ending }}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
"""

NASTY = """\
{#- a comment, gone -#}
{%- set ns = namespace(turn=0, system=none) -%}
{% macro turn(message, number) -%}
    <turn {{ number }} {{ message | tojson }}>
{%- endmacro %}
{% macro wrapped() %}[{{ caller() }}]{% endmacro %}
  {%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
      {%- set ns.system = message.content -%}
      {%- continue -%}
    {%- endif %}
    {%- if (message.role == 'user') != (ns.turn is even) -%}
      {{ raise_exception('roles must alternate: ' ~ message.role) }}
    {%- endif -%}
    {%- set ns.turn = ns.turn + 1 -%}
    {%- if ns.turn > 6 %}{% break %}{% endif -%}
    {{- turn(message, ns.turn) }}
    {{ '<b>"it\\'s"</b> & ' }}{% call wrapped() %}{{ message.content | trim | upper }}{% endcall %}
    {%+ if message.content is not string %}never{% endif +%}
    {%- generation -%}{{ loop.index0 }}{{ loop.last }}{{ ns.turn }}{%- endgeneration -%}
  {%- else -%}
    nobody spoke
  {%- endfor %}

{{ {'b': [1, 2.5, none, true], 'a': '\\u00e9<>&'} | tojson(indent=2, sort_keys=true) }}
{{ ['x', 'y'] | tojson(separators=(',', ':')) }}{{ '\\u00e9' | tojson(ensure_ascii=true) }}
{{ strftime_now('%Y-%m') }} {{ messages | length }} {{ messages[-1].get('name', 'nobody') }}
    {% if messages %}
  indented text
    {% endif %}
{% set tokens = [bos_token, eos_token, unk_token, pad_token, sep_token] %}
{{ tokens | select('defined') | join('|') }} {{ tools is none }} {{ documents is none }}
{% for key, value in messages[0] | dictsort %}{{ key }}={{ value }};{% endfor %}
{% if add_generation_prompt %}   <{{ ns.system or 'no system' }}>   {% endif %}

"""

TEMPLATES = {
    "phi3": PHI3,
    "qwen": QWEN,
    "llama": LLAMA,
    "generation": GENERATION,
    "nasty": NASTY,
}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHATS = {
    "one question": [message("user", "What is the capital of Spain?")],
    "with system": [message("system", " Be brief.\n"), message("user", "Hi")],
    "turns": [
        message("user", "Hi"),
        message("assistant", "Hello!\n"),
        message("user", "<|end|> {{ messages }} {% raw %}"),
    ],
    "empty content": [message("user", ""), message("assistant", ""), message("user", "Hi")],
    "other scripts": [message("user", "\N{EURO SIGN} 'quotes' \"double\" <b>&amp;</b> \\n\n\ttab")],
    "long": [message("user" if i % 2 == 0 else "assistant", f"turn {i}") for i in range(9)],
}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer with special tokens of all kinds: written plainly, as AddedToken, absent."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<unk>")),
        bos_token="<s>",
        eos_token=AddedToken("</s>", lstrip=True),
        unk_token="<unk>",
    )
    made.chat_template = template
    return made


def render_by_transformers(template: str, messages: list[dict[str, str]]) -> str:
    return str(
        tokenizer(template).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    )


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_saved_tokenizers_template_renders_as_transformers_does(
    template: str, chat: str, tmp_path: Path
) -> None:
    source, messages = TEMPLATES[template], CHATS[chat]
    tokenizer(source).save_pretrained(tmp_path)
    rendered = ChatTemplate.load(tmp_path).render(messages)
    assert rendered == render_by_transformers(source, messages)
    assert rendered


ROLES = st.sampled_from(["system", "user", "assistant"])
MESSAGES = st.lists(st.builds(message, ROLES, st.text(max_size=20)), min_size=1, max_size=5)
REFERENCE = tokenizer(PHI3)


@settings(deadline=None)
@given(st.sampled_from(["phi3", "qwen", "generation"]), MESSAGES)
def test_any_messages_render_as_transformers_does(
    template: str, messages: list[dict[str, str]]
) -> None:
    expected = REFERENCE.apply_chat_template(
        messages, chat_template=TEMPLATES[template], tokenize=False, add_generation_prompt=True
    )
    ours = ChatTemplate(TEMPLATES[template], {"bos_token": "<s>", "eos_token": "</s>"})
    assert ours.render(messages) == expected


def test_what_a_template_does_to_the_messages_stays_inside_it() -> None:
    template = ChatTemplate("{% set _ = messages[0].update({'content': 'x'}) %}", {})
    messages = [message("user", "Hi")]
    with pytest.raises(TemplateError):
        template.render(messages)
    assert messages == [message("user", "Hi")]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('only user and assistant roles are supported') }}", "only user and"),
        (NASTY, "roles must alternate: assistant"),
        ("{{ messages[0].nothing.at_all }}", "no attribute 'nothing'"),
        ("{% for message in messages %}", "Unexpected end of template"),
        ("{{ messages.__class__.__base__ }}", "unsafe"),
    ],
)
def test_a_template_that_refuses_says_why(source: str, said: str) -> None:
    messages = [message("assistant", "Hi"), message("user", "Hi")]
    with pytest.raises(TemplateError, match=f"refuses the messages: .*{said}"):
        ChatTemplate(source, {}).render(messages)


def write_tokenizer(folder: Path, **config: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def test_a_template_file_wins_over_the_one_in_the_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template="from the config")
    assert ChatTemplate.load(tmp_path).source == "from the config"
    (tmp_path / "chat_template.jinja").write_text("from the file \N{EURO SIGN}", "utf-8")
    assert ChatTemplate.load(tmp_path).source == "from the file \N{EURO SIGN}"


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"}]
    assert ChatTemplate.load(write_tokenizer(tmp_path, chat_template=named)).source == "chat"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"chat_template": None},
        {"chat_template": ""},
        {"chat_template": [{"name": "tool_use", "template": "tools"}]},
    ],
)
def test_a_model_without_a_template_cannot_chat(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="task=prompt"):
        ChatTemplate.load(write_tokenizer(tmp_path, **config))


def test_special_tokens_are_read_as_text_or_as_object_and_left_out_when_absent(
    tmp_path: Path,
) -> None:
    write_tokenizer(
        tmp_path,
        chat_template="{{ bos_token }}{{ eos_token }}{{ pad_token }}",
        bos_token={"__type": "AddedToken", "content": "<s>"},
        eos_token="</s>",
        pad_token=None,
    )
    template = ChatTemplate.load(tmp_path)
    assert template.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert template.render([message("user", "Hi")]) == "<s></s>"
