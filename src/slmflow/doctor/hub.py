"""What the hub says of a repository: a question of seconds, never a download of weights."""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

from slmflow.doctor.server import public_authorities
from slmflow.doctor.weights import Weights, config_name, hub_cache, offline
from slmflow.redaction import redacted

ENDPOINT = "https://huggingface.co"


def ask(source: str, revision: str | None, patterns: Sequence[str], seconds: float) -> Weights:
    """The repository's files that match, at its revision, and what tells its shape."""
    if offline():
        return _unknown(
            source,
            "HF_HUB_OFFLINE is set, and no whole download of it is on this machine",
            "unset HF_HUB_OFFLINE",
        )
    import httpx

    name = config_name(patterns)
    address = f"{endpoint()}/api/models/{source}/revision/{quote(revision or 'main', safe='')}"
    try:
        with httpx.Client(
            timeout=seconds,
            follow_redirects=True,
            headers=_token_header(),
            verify=public_authorities(),
        ) as client:
            answer = client.get(address, params={"blobs": "true"})
            refused = _refused(source, revision, answer.status_code, answer.headers)
            if refused is not None:
                return refused
            told: dict[str, Any] = answer.raise_for_status().json()
            config = client.get(f"{endpoint()}/{source}/resolve/{told['sha']}/{name}")
            if config.status_code in (401, 403):  # it lists a gated repository's files to everybody
                return _gated(source)
            read = config.json() if config.is_success else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        why = redacted(str(error).splitlines()[0] if str(error) else type(error).__name__)
        return _unknown(
            source,
            f"{redacted(endpoint())} does not answer ({why})",
            "export HF_ENDPOINT=...   # a mirror; or HTTPS_PROXY=...; or give model.source=FOLDER",
        )
    sizes = {str(file["rfilename"]): int(file.get("size") or 0) for file in told["siblings"]}
    files = {
        name: size
        for name, size in sizes.items()
        if any(fnmatch(name, p) and name.count("/") == p.count("/") for p in patterns)
    }
    return Weights(source, False, files, commit=str(told["sha"]), config=read)


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def token() -> str | None:
    """As the hub's client finds it: the environment, then the file that its login wrote."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if written := os.environ.get(name, "").strip():
            return written
    file = Path(os.environ.get("HF_TOKEN_PATH") or hub_cache().parent / "token").expanduser()
    try:
        return file.read_text().strip() or None
    except OSError:
        return None


def _token_header() -> dict[str, str]:
    found = token()
    return {} if found is None else {"Authorization": f"Bearer {found}"}


def _refused(
    source: str, revision: str | None, status: int, headers: Mapping[str, str]
) -> Weights | None:
    code = headers.get("X-Error-Code", "")
    if code == "GatedRepo" or status == 403:
        return _gated(source)
    if code == "RevisionNotFound":
        return _unknown(source, f"it has no revision {revision!r}", "model.revision=null")
    if code == "RepoNotFound" or status in (401, 404):
        return _unknown(
            source,
            "the hub shows no repository of that name to you",
            "export HF_TOKEN=...   # for a private one; else check model.source",
        )
    return None


def _gated(source: str) -> Weights:
    page = f"{redacted(endpoint())}/{source}"
    return _unknown(
        source,
        "it is gated, and the hub does not know that you accepted its licence",
        f"export HF_TOKEN=...   # after you accepted its licence on {page}",
    )


def _unknown(source: str, why_not: str, mend: str) -> Weights:
    return Weights(source, False, why_not=why_not, mend=mend)
