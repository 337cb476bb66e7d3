"""What a job is, kept beside its output: so that the same command goes on with it, and another is
refused."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from slmflow.errors import ConfigError
from slmflow.prediction.errors import PredictionError
from slmflow.prediction.part import PartDone, PartJob
from slmflow.prediction.places import (
    DONE,
    JOB,
    MANIFEST,
    PARTIAL,
    PLAN,
    absolute,
    below,
    done_record,
    find,
    part_name,
    read_json,
    staged,
    write_json,
)

FORMAT = 2  # of plan and manifest
HOW_ON = "type predict.overwrite=true to forget what is there, or give another output"


@dataclass(frozen=True)
class Identity:
    """What decides about the answers, and about the rows that each part has."""

    input: list[dict[str, Any]]  # name, size and digest of each file
    model: dict[str, Any]  # uri of one version, digest
    parameters: dict[str, Any]  # search options
    part_rows: int


@dataclass(frozen=True)
class Plan:
    identity: Identity
    parts: list[int]  # rows of each
    renamed: dict[str, str]  # own columns that are called otherwise in the output


def write_plan(output: str, plan: Plan) -> None:
    """After everything that it speaks of is in place."""
    write_json(below(output, PLAN), {"format": FORMAT, **asdict(plan)})


def find_plan(output: str) -> Plan | None:
    """Of the job that was begun, or done, in that place. Raises ``PredictionError`` for one that
    another version wrote."""
    told = read_json(below(output, MANIFEST)) or read_json(below(output, PLAN))
    if told is None:
        return None
    if told["format"] != FORMAT:
        raise PredictionError(
            f"{output} holds a job of another version of this project (format {told['format']}, "
            f"here {FORMAT}); give another output"
        )
    parts = [part["rows"] if isinstance(part, Mapping) else part for part in told["parts"]]
    return Plan(Identity(**told["identity"]), parts, told["renamed"])


def check_same(output: str, before: Identity, now: Identity) -> None:
    """Raises ``PredictionError`` that says in what the two differ."""
    differences = list(_differences(before, now))
    if differences:
        raise PredictionError("\n  ".join([f"{output} holds another job:", *differences, HOW_ON]))


def is_begun(output: str, now: Identity) -> bool:
    """Whether this very job was begun there and is not done yet."""
    if read_json(below(output, MANIFEST)) is not None:
        return False
    plan = find_plan(output)
    return plan is not None and not list(_differences(plan.identity, now))


def demand_no_job(output: str) -> None:
    """Raises ``ConfigError`` where the place holds a job, which a rerun neither goes on with nor
    takes for its own."""
    if find_plan(absolute(output)) is not None:
        raise ConfigError(f"output={output} holds a job, and a rerun begins one; give another")


def check_free(output: str) -> None:
    """Raises ``PredictionError`` where the place holds parts of which no plan tells."""
    system, path = find(output)
    if not system.isdir(path):
        if system.exists(path):
            raise PredictionError(f"output={output} is a file; give a folder")
        return
    for other in system.ls(path, detail=False):
        name = str(other).rpartition("/")[2]
        if name.endswith(".parquet"):
            raise PredictionError(
                f"{output} holds {name}, and no plan of a job; give another output"
            )


def forget(output: str) -> None:
    """Remove what a job wrote there, and nothing else. What tells of it goes last: where this is
    cut off, it can be done again."""
    plan = find_plan(output)
    for number in range(len(plan.parts) if plan else 0):
        _remove(below(output, part_name(number)))
    _remove_folder(below(output, JOB))
    _remove(below(output, MANIFEST))


def jobs(output: str, plan: Plan, done: Mapping[int, PartDone]) -> Iterator[PartJob]:
    """The parts that are left."""
    for number, rows in enumerate(plan.parts):
        if number not in done:
            place = below(output, part_name(number))
            yield PartJob(number, rows, staged(output, number), place, done_record(output, number))


def done_parts(output: str, plan: Plan) -> dict[int, PartDone]:
    """Those whose record and file are both there, the file with the size that was recorded."""
    manifest = read_json(below(output, MANIFEST))
    sizes, recorded = _sizes(output), _sizes(below(output, DONE))
    done: dict[int, PartDone] = {}
    for number in range(len(plan.parts)):
        place = done_record(output, number)
        # A job that was done before has both where a part is made again: the record is newer.
        record = read_json(place) if place.rpartition("/")[2] in recorded else None
        for told in (record, manifest and manifest["parts"][number]):
            if told is not None and sizes.get(part_name(number)) == told["size"]:
                done[number] = PartDone(**told)
                break
    return done


def is_staged(output: str, plan: Plan, done: Mapping[int, PartDone]) -> bool:
    """Whether the rows of all parts that are left still lie there."""
    sizes = _sizes(below(output, f"{JOB}/input"))
    return all(part_name(n) in sizes for n in range(len(plan.parts)) if n not in done)


def finish(output: str, plan: Plan, done: Mapping[int, PartDone]) -> dict[str, Any]:
    """Write the manifest, then remove what only an unfinished job needs."""
    manifest = {
        "format": FORMAT,
        **asdict(plan),
        "parts": [asdict(done[number]) for number in range(len(plan.parts))],
    }
    write_json(below(output, MANIFEST), manifest)
    _remove_folder(below(output, JOB))
    for name in _sizes(output):
        if name.startswith(PARTIAL):
            _remove(below(output, name))
    return manifest


def _differences(before: Identity, now: Identity) -> Iterator[str]:
    if before.model["digest"] != now.model["digest"]:
        yield f"its model was {before.model['uri']}, now it is {now.model['uri']}"
    for name in sorted({*before.parameters, *now.parameters}):
        was, is_now = before.parameters.get(name), now.parameters.get(name)
        if was != is_now:
            yield f"its search.{name} was {json.dumps(was)}, now it is {json.dumps(is_now)}"
    yield from _other_files(before.input, now.input)
    if before.part_rows != now.part_rows:
        yield f"its predict.part_rows was {before.part_rows}, now it is {now.part_rows}"


def _other_files(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterator[str]:
    if [file["digest"] for file in before] == [file["digest"] for file in now]:
        return  # perhaps under other names
    was, is_now = ({file["name"]: file["digest"] for file in files} for files in (before, now))
    changed = [name for name in was if name in is_now and was[name] != is_now[name]]
    if changed:
        yield f"its input {changed[0]} has other rows now"
    else:
        yield f"its input was {', '.join(was)}, now it is {', '.join(is_now)}"


def _sizes(folder: str) -> dict[str, int]:
    system, path = find(folder)
    system.invalidate_cache()  # other nodes write there, too
    try:
        found = system.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {str(one["name"]).rpartition("/")[2]: one["size"] for one in found}


def _remove(url: str) -> None:
    system, path = find(url)
    with suppress(FileNotFoundError):
        system.rm_file(path)


def _remove_folder(url: str) -> None:
    system, path = find(url)
    if system.isdir(path):
        system.rm(path, recursive=True)
