"""The run of then and the one that was made, compared: what each kind of run has."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slmflow.answering.model_files import CONTENTS
from slmflow.replay import figures
from slmflow.replay.answers import compare_answers, compare_written
from slmflow.replay.contents import compare_contents
from slmflow.replay.evaluations import compare_evaluations
from slmflow.replay.record import Record
from slmflow.replay.results import Finding, Sameness, first_other, of_one_side
from slmflow.tracking.names import LOCKED, POINT

SHOWN = 3  # names in a line
COMMIT = 19  # characters of a commit, or of the digest of a folder
BUILT = "slmflow.onnx"  # where a run had its ONNX model from
FROM_CACHE = "the build cache"


def compare(then: Record, now: Record, part: str = "") -> list[Finding]:
    """Of two runs of one entry point, with all below them."""
    where = part or str(then.entry_point)
    if then.sweep:
        return list(_points(then, now))
    found = [*_ending(where, then, now), *_weights(where, then, now)]
    found += [*compare_contents(where, then, now), *_probes(where, then, now)]
    if "revision" in then.tags and CONTENTS not in then.documents:  # no more is known
        found += figures.compare(where, _size(then), _size(now))
    found += _dataset(where, then, now)
    found += compare_evaluations(where, then, now)
    with TemporaryDirectory() as folder:
        found += compare_answers(where, then, now, Path(folder))
    if then.entry_point == "predict" and then.run.data.metrics:
        found += figures.compare(where, then.run.data.metrics, now.run.data.metrics)
    if then.entry_point == "predict":
        found += compare_written(where, then, now)
    found += [*_exported(where, then, now), *_locked(where, then, now)]
    mine = dict(_by_key(now))
    for key, one in _by_key(then):
        name = f"{part}, {one.entry_point}" if part else str(one.entry_point)
        found += compare(one, mine[key], name) if key in mine else [_not_begun(name)]
    return found


def pairs(then: Record, now: Record) -> list[tuple[Record, Record]]:
    """Parts that are runs of entry points, each with its counterpart: of main by the entry point,
    of a sweep by what varies."""
    mine = dict(_by_key(now))
    return [(part, mine[key]) for key, part in _by_key(then) if key in mine]


def _by_key(record: Record) -> list[tuple[str, Record]]:
    parts = [part for part in record.parts if part.entry_point is not None]
    return [(_key(part), part) for part in parts]


def _key(part: Record) -> str:
    return " ".join(part.varies) or str(part.entry_point)


def _not_begun(part: str) -> Finding:
    return Finding(part, "state", Sameness.different, "did not begin")


def _points(then: Record, now: Record) -> Iterator[Finding]:
    mine = {_key(point): point for point in now.parts}
    for point in then.parts:
        part = f"point {point.tags.get(POINT, '?')}"
        if _key(point) in mine:
            yield from compare(point, mine[_key(point)], part)
        elif point.values is not None:
            yield _not_begun(part)
        else:
            why = point.tags.get("slmflow.error", "it had no config").splitlines()[0]
            yield Finding(part, "state", Sameness.unknown, f"was not repeated: {why}")


def _ending(part: str, then: Record, now: Record) -> Iterator[Finding]:
    """Told where one of the two did not finish. A run that was stopped from outside, or had not
    ended when it was read, has no end that could be the same."""
    was, is_now = then.run.info.status, now.run.info.status
    if was == is_now:
        return
    errors = [one.tags.get("slmflow.error", "").splitlines()[:1] for one in (then, now)]
    details = [line for error in errors for line in error]
    same = Sameness.different if _ended_by_itself(then) else Sameness.unknown
    yield Finding(part, "state", same, f"{was} -> {is_now}", details)


def _ended_by_itself(record: Record) -> bool:
    """`mlflow run` calls a run FAILED that was interrupted, too; one that failed says of what."""
    status = record.run.info.status
    return status == "FINISHED" or (status == "FAILED" and "slmflow.error" in record.tags)


def _weights(part: str, then: Record, now: Record) -> Iterator[Finding]:
    was, is_now = then.documents.get("weights.json"), now.documents.get("weights.json")
    if was is None and is_now is None:
        yield from _revisions(part, then, now)
        return
    if was is None or is_now is None:
        yield of_one_side(part, "weights", recorded_then=was is not None)
        return
    origin = now.tags.get(BUILT)
    tail = f", from {origin}" if origin else ""
    others = _other_files(was["files"], is_now["files"])
    yield _files(part, "weights", others, len(was["files"]), tail)


def _files(part: str, what: str, others: list[str], count: int, tail: str = "") -> Finding:
    if not others:
        return Finding(part, what, Sameness.identical, f"all {count} files{tail}")
    named = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
    words = f"{len(others)} of {count} files: {named}{tail}"
    return Finding(part, what, Sameness.different, words, others)


def _exported(part: str, then: Record, now: Record) -> Iterator[Finding]:
    if then.entry_point != "export":
        return
    was, is_now = then.documents.get("manifest.json"), now.documents.get("manifest.json")
    if was is None or is_now is None:
        if was is not is_now:
            yield of_one_side(part, "files", recorded_then=was is not None)
        return
    others = _other_files(was["files"], is_now["files"])
    yield _files(part, "files", others, len(was["files"]))


def _locked(part: str, then: Record, now: Record) -> Iterator[Finding]:
    """Of each model: the commit that it was resolved to, and the digests of its files."""
    was = then.documents.get(LOCKED, {}).get("models", {})
    is_now = now.documents.get(LOCKED, {}).get("models", {})
    for name in sorted({*was, *is_now}):
        if name not in was or name not in is_now:
            yield of_one_side(part, name, recorded_then=name in was)
            continue
        commits = [one[name]["commit"][:COMMIT] for one in (was, is_now)]
        others = [
            file
            for file in sorted({*was[name]["files"], *is_now[name]["files"]})
            if was[name]["files"].get(file) != is_now[name]["files"].get(file)
        ]
        same = commits[0] == commits[1] and not others
        words = " -> ".join(dict.fromkeys(commits))
        if others:
            words += f", {len(others)} other files: {', '.join(others[:SHOWN])}"
        yield Finding(part, name, Sameness.identical if same else Sameness.different, words, others)


def _revisions(part: str, then: Record, now: Record) -> Iterator[Finding]:
    """Of runs from before manifests: what their weights came from."""
    was, is_now = then.tags.get("revision"), now.tags.get("revision")
    if was is None and is_now is None:
        return
    if was is None or is_now is None:
        yield of_one_side(part, "weights", recorded_then=was is not None)
        return
    same = Sameness.identical if was == is_now else Sameness.different
    yield Finding(part, "weights", same, "the same source" if was == is_now else "another source")


def _other_files(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    def content(files: Mapping[str, Any], name: str) -> Any:
        return files[name]["sha256"] if name in files else None

    return [name for name in sorted({*then, *now}) if content(then, name) != content(now, name)]


def _probes(part: str, then: Record, now: Record) -> Iterator[Finding]:
    was, is_now = then.documents.get("probe.json"), now.documents.get("probe.json")
    if was is None and is_now is None:
        return
    if was is None or is_now is None:
        yield of_one_side(part, "probe tokens", recorded_then=was is not None)
        return
    asked = was["probes"]
    mine = {probe["question"]: probe for probe in is_now["probes"]}
    others = [line for one in asked if (line := _apart(one, mine.get(one["question"])))]
    if others:
        words = f"{len(others)} of {len(asked)} prompts: {others[0]}"
        yield Finding(part, "probe tokens", Sameness.different, words, others)
        return
    tokens = sum(len(probe["answer_ids"]) for probe in asked)
    words = f"all {tokens} of {len(asked)} prompts"
    yield Finding(part, "probe tokens", Sameness.identical, words)


def _apart(then: Mapping[str, Any], now: Mapping[str, Any] | None) -> str | None:
    """Where the tokens part; None where they do not."""
    question = json.dumps(then["question"])
    if now is None:
        return f"{question} was not asked"
    if then["prompt_ids"] != now["prompt_ids"]:
        return f"{question} becomes other tokens"
    was, is_now = then["answer_ids"], now["answer_ids"]
    if was == is_now:
        return None
    return f"from token {first_other(was, is_now) + 1} on, to {question}"


def _size(record: Record) -> dict[str, float]:
    metrics = record.run.data.metrics
    return {"size_bytes": metrics["size_bytes"]} if "size_bytes" in metrics else {}


def _dataset(part: str, then: Record, now: Record) -> Iterator[Finding]:
    was, is_now = then.tags.get("data.digest"), now.tags.get("data.digest")
    if was is None and is_now is None:
        return
    if was is None or is_now is None:
        yield of_one_side(part, "dataset", recorded_then=was is not None)
    elif was == is_now:
        yield Finding(part, "dataset", Sameness.identical, f"{was[:19]}")
    else:
        yield Finding(part, "dataset", Sameness.different, f"{was[:19]} -> {is_now[:19]}")
