"""Secrets out of what is told, logged or kept: only "***" stays of them.

Known as a secret are: values of environment variables and of keys whose names say so, what stands
before the @ of a URL, signatures in its query, and the shapes of well-known tokens and keys.
Nothing else is touched, and redacting twice changes no more than redacting once.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from slmflow.secret_names import names_secret

HIDDEN = "***"
LEAST = 8  # characters of a variable's value that is a secret: shorter ones are words of their own
LEAST_TYPED = 4  # of a value behind a secret's name, in a text

COUNTED = re.compile(r"token|(?<!s)s$|auth$", re.IGNORECASE)  # names whose short numbers are counts
NO_VALUES = {
    *("true", "false", "null", "none", "default", "auto", "missing", "unset", "required"),
    *("bearer", "basic", "digest"),  # behind "Authorization:"; the secret is the next word
}
CODE = re.compile(
    r"(str|bytes|string|object|optional|secretstr|sequence|mapping|self|os|settings|config|environ"
    r"|getpass|token|password|secret|key|args|kwargs)|_{0,2}[A-Za-z]+([._]{1,3}[A-Za-z]+)+",
    re.IGNORECASE,
)
"""In a diff, ``token=settings.token`` or ``password: str`` is code."""

NAMES = re.compile(r"[A-Za-z_]{1,7}|[a-z]*(_[a-z]+)+_?")  # token = hub_token

VARIABLE = re.compile(r"[A-Z]+(_[A-Z]+)+")  # API_KEY = "OPENAI_API_KEY"
USER_IN_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,20}+://)(?P<user>[^\s/\"'<>`]{1,2000}@"
    r"|[^\s/@:\"'<>`]{1,200}:(?!\d{1,5}[/?#,\s])[^\s@\"'<>`]{1,200}@)"  # a slash in a password
)
IN_QUERY = re.compile(r"(?P<name>[?&;][\w.%-]{1,60}+=)(?P<value>[^\s&;#\"'<>`,)\]}]+)")
SIGNED = {"sig", "signature", "key", "code", "auth", "jwt", "token", "pass"}
NAME = (
    r"(?<![\w.-])(?P<dashes>-{0,2}+)(?P<name>[A-Za-z_][\w.-]{0,120}+)"
    r"(?P<between>[\"']?\]?(?:=|:[ ]|[ ]?:[ ]?(?=[\"'])"
    r"|[ ]{1,20}=[ ]{1,20}(?=[\"']|[^\s\"']+[ \t\r]*(?:\n|\Z))))"  # as in INI: it ends its line
)
BEFORE_VALUE = re.compile(NAME)
NAMED = re.compile(
    NAME + r"(?:(?P<quote>[\"'])(?P<quoted>(?:\\.|(?!(?P=quote))[^\\\n])*)(?P=quote)"
    r"|(?P<bare>[^\s\"',;&(){}\[\]<>`|#]+"
    r"(?:[({\[<>|#](?=[^\s\"',;&)}\]])(?![^\n]{0,200}[)}\]])[^\s\"',;&]*)?))"  # not of a call
)
OPTION = re.compile(
    r"(?<![\w.-])(?P<before>-{1,2}(?P<name>[A-Za-z_][\w.-]{0,120}+)"
    r"(?:[ \t]+|(?P<mark>[\"']),\s{0,20}(?=(?P=mark))))"
    r"(?:(?P<quote>[\"'])(?P<quoted>(?:\\.|(?!(?P=quote))[^\\\n])*)(?P=quote)"
    r"|(?P<bare>(?!-)[^\s\"'`,;()\[\]{}<>|]+))"
)
"""``--token VALUE`` of a command, also as the list that Python shows of one."""
NETRC = re.compile(
    r"(?P<before>(?<!\w)(?:machine|login|account)[ \t]+\S+\s+[+-]?\s*passw(?:or)?d[ \t]+"
    r"|^[ \t+-]*passw(?:or)?d[ \t]+(?=\S+[ \t]*$|\"[^\"\n]*\"[ \t]*$"
    r"|\S+[ \t]+(?:login|account|machine)[ \t]))"
    r"(?:\"[^\"\n]*\"|[^\s=:]\S*)",
    re.MULTILINE,
)
"""``password VALUE`` of .netrc: behind a login, or alone on its line."""
IN_BRACES = re.compile(
    r"(?P<space>\s+)|(?P<open>[{\[])|(?P<close>[}\]])|(?P<comma>,)"
    r"|(?P<name>[\w.@+/-]+|\"[^\"]*\"|'[^']*')\s*:(?!//)"
    r"|(?P<value>\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|\$\{[^}]*\}|[^\s,{}\[\]\"'][^,{}\[\]\"']*)"
)
"""The parts of a list or a dictionary, as Hydra's grammar has them."""
AUTHORIZATION = re.compile(
    r"(?P<before>authorization[\"']?[ ]?[:=][ ]?[\"']?(?:token|basic|apikey)[ ])"
    r"(?=[^\s\"',]{20}|[^\s\"',]*[0-9])[\w.~+/=-]{8,}",
    re.IGNORECASE,
)
REFERENCE = re.compile(r"\$\{.*\}|\$\(.*|\$[A-Z_][A-Z0-9_]*|\{\{.*|<.*>", re.DOTALL)
SHAPES = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)"
    r"|(?<![A-Za-z0-9_])(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|sk-[\w-]{16,}|sk_live_\w{16,}|xox[a-z]-[\w-]{10,}|nvapi-[\w-]{16,}"
    r"|gsk_\w{16,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|AIza[\w-]{35}|dapi[0-9a-f]{32}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]+)?)"
    r"|(?<=[Bb]earer )(?=[A-Za-z_.~+/-]*[0-9]|[\w.~+/-]{20})[\w.~+/-]{8,}=*"
)

_typed: set[str] = set()


def redacted(text: str) -> str:
    """The text with "***" for every secret in it."""
    while (again := _once(text)) != text:  # what was hidden may have set another one free
        text = again
    return text


def holds_secret(text: str) -> bool:
    return redacted(text) != text


def without_secrets(value: Any, key: str = "") -> Any:
    """Plain values of a config, and below: hidden where the key says secret, else redacted."""
    if isinstance(value, Mapping):
        return {name: without_secrets(below, _below(key, name)) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(below, key) for below in value]
    if is_secret(key, value):
        return HIDDEN
    return redacted(value) if isinstance(value, str) else value


def redacted_override(override: str) -> str:
    """Of ``KEY=VALUE``, as typed: the key decides, too, however short the value."""
    key, separator, value = override.partition("=")
    if not separator:
        return redacted(override)
    hidden = redacted_value(key.lstrip("+~-"), value)
    return redacted(override) if hidden == value else redacted(f"{key}={hidden}")


def redacted_value(key: str, value: str) -> str:
    """As it was typed, lists and dictionaries included: all of it is values, no code or prose."""
    if is_secret(key, value):
        return HIDDEN
    several = value.startswith(("{", "[")) and not REFERENCE.fullmatch(value)
    return redacted(_inside(key, value) if several else value)


def redacted_overrides(overrides: Sequence[str]) -> list[str]:
    return [redacted_override(override) for override in overrides]


def remember(value: Any, key: str = "") -> None:
    """Hide it from now on wherever it occurs: what stands in a config, or was typed, under the
    name of a secret is repeated by errors and commands."""
    if isinstance(value, Mapping):
        for name, below in value.items():
            remember(below, _below(key, name))
    elif isinstance(value, list | tuple):
        for below in value:
            remember(below, key)
    elif is_secret(key, value) and len(str(value)) >= LEAST:
        _typed.add(str(value))


def remember_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        key, _, value = override.partition("=")
        remember(value.strip("'\""), key.lstrip("+~-"))


def is_secret(key: str, value: Any) -> bool:
    """Whether the key names a secret and the value is one, not a switch, or where to find it."""
    if value is None or isinstance(value, bool | Mapping | list | tuple):
        return False
    text = str(value).strip().strip("'\"")
    if REFERENCE.fullmatch(text) or text == HIDDEN or text.lower() in NO_VALUES:
        return False  # where it comes from, or nothing
    if not any(character.isalnum() for character in text):
        return False
    if isinstance(value, int | float) or text.replace(".", "", 1).isdigit():
        counts = COUNTED.search(key) and not (text.isdigit() and len(text) >= LEAST)
        return names_secret(key) and not counts
    return names_secret(key)


def _below(key: str, name: Any) -> str:
    """``api: {key: ...}`` says what ``api.key`` says."""
    return f"{key.rpartition('.')[2]}.{name}"


def _once(text: str) -> str:
    for secret in _known():
        text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = USER_IN_URL.sub(_without_user, text)
    if "=" in text or ":" in text:
        text = IN_QUERY.sub(_without_signature, text)
        text = AUTHORIZATION.sub(rf"\g<before>{HIDDEN}", text)
        text = _without_values(text)
    if "-" in text:
        text = OPTION.sub(_without_option, text)
    if "passw" in text:
        text = NETRC.sub(rf"\g<before>{HIDDEN}", text)
    return SHAPES.sub(HIDDEN, text)


def _known() -> list[str]:
    """Longest first: one may be a part of another. As they stand, in a URL and in JSON."""
    values = set(_typed)
    for name, value in os.environ.items():
        if names_secret(name) and _is_value(value.strip()):
            values.add(value.strip())
    spelt = {s for v in values for s in (v, quote(v, safe=""), json.dumps(v)[1:-1])}
    return sorted(spelt, key=len, reverse=True)


def _is_value(value: str) -> bool:
    if len(value) < LEAST or HIDDEN in value:
        return False
    if value.startswith("/"):  # of a file that holds it; base64 may begin so, too
        return not os.access(value, os.F_OK)
    return not value.startswith(("~", "./"))


def _without_user(found: re.Match[str]) -> str:
    """A name alone is a secret only where it is a token, over HTTP: s3 and abfs put a bucket
    there, ssh and databases a user."""
    user = found["user"].removesuffix("@")
    over_http = found["scheme"].lower().endswith(("http://", "https://"))
    return f"{found['scheme']}{HIDDEN}@" if over_http or ":" in user else found[0]


def _without_signature(found: re.Match[str]) -> str:
    name = found["name"][1:-1]
    words = re.split(r"[^a-z]+", name.lower())
    secret = names_secret(name) or name.lower() in SIGNED or words[-1] in ("signature", "token")
    value = found["value"]
    if not secret or value.startswith(("${", HIDDEN)) or REFERENCE.fullmatch(value):
        return found[0]
    return found["name"] + HIDDEN


def _without_values(text: str) -> str:
    """What stands behind another name is searched, too: ``error: api_key=abc``."""
    shown, done, at = [], 0, 0
    while name := BEFORE_VALUE.search(text, at):
        at = name.end()
        found = NAMED.match(text, name.start()) if names_secret(name["name"]) else None
        if found is not None and (hidden := _without_value(found)) != found[0]:
            shown += [text[done : found.start()], hidden]
            done = at = found.end()
    return "".join([*shown, text[done:]])


def _without_value(found: re.Match[str]) -> str:
    quoted = found["quoted"] is not None
    value = found["quoted"] if quoted else found["bare"]
    if value.startswith(HIDDEN) or len(value) < LEAST_TYPED or not is_secret(found["name"], value):
        return found[0]
    if VARIABLE.fullmatch(value):
        return found[0]
    if not quoted and (_code(found) or _prose(found)):
        return found[0]
    mark = found["quote"] or ""
    return f"{found['dashes']}{found['name']}{found['between']}{mark}{HIDDEN}{mark}"


def _without_option(found: re.Match[str]) -> str:
    quoted = found["quoted"] is not None
    value = found["quoted"] if quoted else found["bare"]
    least = LEAST_TYPED if quoted or re.search(r"\d", value) else LEAST  # "--token and a name"
    if value.startswith(HIDDEN) or len(value) < least or not is_secret(found["name"], value):
        return found[0]
    mark = found["quote"] or ""
    return f"{found['before']}{mark}{HIDDEN}{mark}"


def _inside(key: str, text: str) -> str:
    """Of a list or a dictionary: ``{api: {key: abc}}`` is one, too."""
    around: list[str] = []
    name = key

    def show(piece: re.Match[str]) -> str:
        nonlocal name
        if piece["open"]:
            around.append(name)
        elif piece["close"] and around:
            name = around.pop()
        elif piece["comma"] and around:
            name = around[-1]
        elif piece["name"]:
            name = _below(around[-1] if around else key, piece["name"].strip("'\""))
        elif piece["value"] and is_secret(name, piece["value"]):
            return HIDDEN
        return piece[0]

    return IN_BRACES.sub(show, text)


def _code(found: re.Match[str]) -> bool:
    """A call, an index, a name: behind ``=`` alone, as in ``.env``, only an argument is a name."""
    value, rest = found["bare"], found.string[found.end() : found.end() + 100]
    if rest.startswith(("(", "[")):
        return True
    code = CODE.fullmatch(value) is not None
    if found["between"] == "=" and found["name"].isupper():
        return False  # as in .env
    if found["between"].endswith("= "):
        return code or NAMES.fullmatch(value) is not None or names_secret(value) or value in SIGNED
    if "." in value and found["between"] == "=":
        return code and rest.lstrip().startswith((")", ",", "`"))
    return code


def _prose(found: re.Match[str]) -> bool:
    """``the secret: shorter ones``; in YAML the value ends its line, or a part of braces."""
    if not found["between"].endswith(": ") or re.search(r"\d", found["bare"]):
        return False
    ends = found.string[found.end() : found.end() + 1] in ("", "\n", ",", "}", "]")
    return not ends or len(found["bare"]) < LEAST


def typed_secrets(arguments: Sequence[str]) -> list[str]:
    """What of ``-P key=value ...`` holds a secret, as it may be shown."""
    typed = [argument.removeprefix("-P") for argument in arguments]
    return [redacted_override(one) for one in typed if redacted_override(one) != one]


def refusal(shown: Sequence[str]) -> str:
    return (
        f"{', '.join(shown)} holds a secret, and MLflow would record it with the run; nothing was "
        "started. Give it by the environment: export NAME=... and, where a key must have it, "
        "-P 'KEY=${oc.env:NAME}'; for a URL, leave out user, password and signature, and let its "
        "tool read them from its own variables or file (~/.netrc, HF_TOKEN, AWS_PROFILE)"
    )
