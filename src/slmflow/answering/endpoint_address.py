"""Where an OpenAI-compatible server is: ``openai:/http://host:port/v1#model``."""

import re
from dataclasses import dataclass

import httpx

from slmflow.errors import ConfigError

PREFIX = "openai:/"
FORMS = (
    "openai:/http://127.0.0.1:8000/v1, or openai:/https://api.openai.com/v1#NAME where the server "
    "has several models"
)


@dataclass(frozen=True)
class Address:
    base: str  # http://127.0.0.1:8000/v1
    model: str | None  # None: the only one that the server lists

    @property
    def uri(self) -> str:
        return f"{PREFIX}{self.base}" + (f"#{self.model}" if self.model else "")


def parse_address(uri: str) -> Address:
    """Raises ``ConfigError``, whose message shows neither a password nor what follows a ``?``."""
    url, hash_sign, model = uri.removeprefix(PREFIX).partition("#")
    parts = _parts(url) if uri.startswith(PREFIX) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.host:
        wrong = "is no address of an OpenAI-compatible server"
    elif parts.userinfo:
        wrong = (
            "has a user or a password in it, and addresses are logged; give the key in the "
            "environment, as OPENAI_API_KEY or SLMFLOW_API_KEY"
        )
    elif "?" in url:
        wrong = "has a query (from the ? on), and addresses are logged; leave it out"
    elif re.search(r"\s", url + model) or (hash_sign and not model):
        wrong = "has a space in it, or no model after the #"
    else:
        return Address(url.rstrip("/") + ("" if parts.path.strip("/") else "/v1"), model or None)
    raise ConfigError(f"{_shown(uri)} {wrong}; allowed: {FORMS}")


def _parts(url: str) -> httpx.URL | None:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:  # its message repeats the port, which may be a piece of a password
        return None
    return parts if (parts.port or 0) < 2**16 else None


def _shown(uri: str) -> str:
    without_user = re.sub(r".*@", f"{PREFIX}***@", uri, flags=re.DOTALL)
    return re.sub(r"\?.*", "?***", without_user, flags=re.DOTALL)
