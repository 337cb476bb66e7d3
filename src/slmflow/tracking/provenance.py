"""What a run was made by, as an artifact of every run: ``provenance/provenance.json``.

``{"format": 1, "entry_point", "overrides", "choices", "code", "python", "os", "packages",
"constraints_sha256", "hardware", "environment", "seeds"}``; beside it ``constraints.txt`` and,
where files differ from the commit, ``code.diff``. Nothing of it holds a secret.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmflow.checkout import PROJECT_ROOT
from slmflow.redaction import redacted, redacted_overrides
from slmflow.tracking.code import MOST, Code, code_state
from slmflow.tracking.surroundings import environment, hardware, packages

FOLDER = "provenance"
CONSTRAINTS = PROJECT_ROOT / "constraints.txt"


@dataclass(frozen=True)
class Provenance:
    """``tags``: what runs are searched by."""

    record: Mapping[str, Any]
    diff: str
    tags: Mapping[str, str]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        told = json.dumps(self.record, indent=1, ensure_ascii=False) + "\n"
        (folder / "provenance.json").write_text(told, "utf-8")
        if CONSTRAINTS.is_file():
            (folder / CONSTRAINTS.name).write_bytes(CONSTRAINTS.read_bytes())
        if self.diff:
            (folder / "code.diff").write_bytes(_bytes(self.diff))


def collect(
    entry_point: str,
    overrides: Sequence[str],
    choices: Mapping[str, str],
    flat: Mapping[str, Any],
    commit: str | None = None,
) -> Provenance:
    """``flat``: the config, dotted. ``commit``: what the run has been told by others, for where
    there is no git, as in a container."""
    code = code_state(PROJECT_ROOT)
    diff = redacted(code.diff)
    told = _told(code, diff, commit)
    record = {
        "format": 1,
        "entry_point": entry_point,
        "overrides": redacted_overrides(overrides),
        "choices": dict(choices),
        "code": told,
        "python": platform.python_version(),
        "os": platform.platform(),
        "packages": packages(),
        "constraints_sha256": _sha256(CONSTRAINTS.read_bytes()) if CONSTRAINTS.is_file() else None,
        "hardware": hardware(),
        "environment": environment(),
        "seeds": {key: value for key, value in flat.items() if _is_seed(key)},
    }
    return Provenance(record, diff, _tags(told))


def _told(code: Code, diff: str, commit: str | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "commit": code.commit or commit,
        "branch": code.branch,
        "remote": redacted(code.remote) if code.remote else None,
        "dirty": code.dirty,
        "diff_sha256": _sha256(_bytes(diff)) if diff else None,
    }
    if code.files:
        told["files"] = [redacted(name) for name in code.files[:MOST]]
    if len(code.files) > MOST:
        told["files_more"] = len(code.files) - MOST
    if code.left_out:  # binary, too large for the diff, or there to hold secrets
        told["left_out"] = [redacted(name) for name in code.left_out[:MOST]]
    if len(code.left_out) > MOST:
        told["left_out_more"] = len(code.left_out) - MOST
    if code.unknown:
        told["unknown"] = redacted(code.unknown)
    return told


def _tags(code: Mapping[str, Any]) -> dict[str, str]:
    known = {name: code[name] for name in ("commit", "branch") if code[name]}
    if code["commit"]:
        known["dirty"] = "true" if code["dirty"] else "false"
    return {f"slmflow.code.{name}": value for name, value in known.items()}


def _is_seed(key: str) -> bool:
    name = key.rpartition(".")[2]
    return name == "seed" or name.endswith("_seed")


def _bytes(diff: str) -> bytes:
    return diff.encode("utf-8", "surrogateescape")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
