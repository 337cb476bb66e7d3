"""What a packaged model is made of beside its weights, then and now: code, flavours, signature,
requirements, ``model_config``."""

from collections.abc import Iterator, Mapping
from typing import Any

from slmflow.answering.model_files import CONTENTS
from slmflow.drawing.units import clip
from slmflow.replay.record import Record
from slmflow.replay.results import Finding, Sameness, first_other, of_one_side

WHAT = "code and settings"
SHOWN = 3  # names in a line
CLIP = 60  # characters of a setting or digest


def compare_contents(part: str, then: Record, now: Record) -> Iterator[Finding]:
    was, is_now = then.documents.get(CONTENTS), now.documents.get(CONTENTS)
    if was is None and is_now is None:
        return
    if was is None or is_now is None:
        yield of_one_side(part, WHAT, recorded_then=was is not None)
        return
    others = dict(_differing(was, is_now))
    if not others:
        count = f"{len(is_now['files'])} files, {len(is_now['settings'])} settings"
        yield Finding(part, WHAT, Sameness.identical, f"all {count}")
        return
    named = ", ".join(list(others)[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
    details = [f"{name}: {change}" for name, change in others.items()]
    yield Finding(part, WHAT, Sameness.different, f"{len(others)} differ: {named}", details)


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names with what they were and are, the ones that a person can read first."""
    was, is_now = set(then["requirements"]), set(now["requirements"])
    if was != is_now:
        shown = (", ".join(sorted(lines)) or "-" for lines in (was - is_now, is_now - was))
        yield "requirements", " -> ".join(shown)
    yield from _changes(then["settings"], now["settings"])
    yield from _changes(then["files"], now["files"])


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Long ones, as a signature, from where they begin to differ."""
    for name in sorted({*then, *now}):
        was, is_now = str(then.get(name, "-")), str(now.get(name, "-"))
        if was != is_now:
            same = first_other(was, is_now) if len(was) > CLIP else 0
            yield name, " -> ".join(clip(text[same:], CLIP) for text in (was, is_now))
