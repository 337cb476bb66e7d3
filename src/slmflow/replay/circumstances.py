"""What has changed around a run since it was recorded: code, libraries, machine, environment."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slmflow import console
from slmflow.listing import first
from slmflow.replay.results import Circumstances, Difference

CHANGE_NUMBERS = (
    *("torch", "transformers", "tokenizers", "onnxruntime-genai", "onnxruntime-genai-cuda"),
    *("onnxruntime-genai-directml", "onnxruntime", "onnx", "onnx-ir", "numpy", "mlflow"),
)
"""Packages that can change what a model answers, or the bytes that are built and packaged."""

MEANINGS = {
    "code": "Other code: prompts, search, packaging and scores may be done otherwise.",
    "libraries": (
        "Other libraries: kernels may add in another order, so that digits after the sixth "
        "differ, and tokens where two are nearly as likely. A model that is built is built anew, "
        "with other bytes if the builder changed."
    ),
    "system": "Another Python or system: times may differ; results should not.",
    "machine": (
        "Another machine: its kernels and number of threads decide in which order is added, so "
        "that last digits differ, and tokens where two are nearly as likely. Times, memory and "
        "rates cannot be compared."
    ),
    "environment": "Other environment variables, which may choose threads, devices and sources.",
    "weights": "Other weights: what comes out is another model's.",
    "models": "Other models by the names of then: what comes out is that of others.",
}
"""Each group of differences, and what it means for the results."""

SHORT = 12  # characters of a commit or digest
NAMED = 3  # files; the others are counted
ABSENT = "no git"


def compare(
    then: Mapping[str, Any] | None, now: Mapping[str, Any] | None, run_id: str
) -> Circumstances:
    """Two ``provenance.json``, see ``slmflow.tracking.provenance``. ``run_id``: that of then."""
    if then is None or now is None:
        return Circumstances(recorded=False)
    numbers, others = _packages(then, now)
    return Circumstances(
        differences=[*_code(then, now), *numbers, *_system(then, now), *_machine(then, now)],
        others=others,
        advice=_advice(then, now, run_id),
    )


def _code(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    was, is_now = then.get("code") or {}, now.get("code") or {}
    for name in ("commit", "branch", "remote"):
        # The same commit is the same code, whatever leads to it.
        if name != "commit" and was.get("commit") == is_now.get("commit"):
            continue
        yield from _differing("code", name, was.get(name), is_now.get(name))
    if (was.get("dirty"), was.get("diff_sha256")) != (
        is_now.get("dirty"),
        is_now.get("diff_sha256"),
    ):
        yield Difference("code", "uncommitted", _dirt(was), _dirt(is_now))


def _dirt(code: Mapping[str, Any]) -> str:
    if not code.get("dirty"):
        return "nothing"
    diff = f"diff {str(code.get('diff_sha256') or 'not recorded')[:SHORT]}"
    if not code.get("files"):  # an earlier slmflow recorded it
        return diff
    return f"{first(code['files'], NAMED, unnamed=code.get('files_more', 0))} ({diff})"


def _packages(
    then: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[list[Difference], list[Difference]]:
    """Those that can change numbers, and the others."""
    was, is_now = then.get("packages") or {}, now.get("packages") or {}
    found = [
        Difference("libraries", name, was.get(name), is_now.get(name))
        for name in sorted({*was, *is_now})
        if was.get(name) != is_now.get(name)
    ]
    numbers = [one for one in found if one.name.lower().replace("_", "-") in CHANGE_NUMBERS]
    return numbers, [one for one in found if one not in numbers]


def _system(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    for name in ("python", "os"):
        yield from _differing("system", name, then.get(name), now.get(name))


WHERE_LOGGED = {
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL"),
    *("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
}
"""Variables that change where a run is, some of them set by MLflow itself, and nothing of it."""


def _machine(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    was, is_now = then.get("hardware") or {}, now.get("hardware") or {}
    for name in ("cpu", "cores", "memory_bytes", "accelerators"):
        shown, shown_now = (_shown(name, one.get(name)) for one in (was, is_now))
        yield from _differing("machine", name.removesuffix("_bytes"), shown, shown_now)
    before, after = then.get("environment") or {}, now.get("environment") or {}
    for name in sorted({*before, *after} - WHERE_LOGGED):
        yield from _differing("environment", name, before.get(name), after.get(name))


def _shown(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if name == "memory_bytes":
        return console.size(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(one) for one in value) or "none"
    return str(value)


def _differing(group: str, name: str, then: Any, now: Any) -> Iterator[Difference]:
    if then != now:
        shown = (None if value is None else str(value) for value in (then, now))
        yield Difference(group, name, *shown)


def _advice(then: Mapping[str, Any], now: Mapping[str, Any], run_id: str) -> list[str]:
    """To get the code of then beside this checkout. Nothing of it is done here."""
    was, is_now = then.get("code") or {}, now.get("code") or {}
    commit = was.get("commit")
    same = was.get("dirty") == is_now.get("dirty") and was.get("diff_sha256") == is_now.get(
        "diff_sha256"
    )
    if commit is None or (commit == is_now.get("commit") and same):
        return []
    place = f"../slmflow-{commit[:SHORT]}"
    lines = [f"git worktree add {place} {commit}"]
    if was.get("remote") and commit != is_now.get("commit"):
        fetch = f"git fetch {shlex.quote(str(was['remote']))} {commit}"
        lines.insert(0, f"{fetch}  # where this clone lacks it")
    if was.get("dirty"):
        got = f"mlflow artifacts download -r {run_id} -a provenance/code.diff -d {place}"
        lines.append(f"{got}  # what was not committed")
        lines.append(f"git -C {place} apply code.diff  # and put it in")
    return lines
