"""The story of a job: pin the model, divide the rows, have every part answered, write it down."""

import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmflow import console
from slmflow.config.prediction import Engine, Predict
from slmflow.prediction.engines import find_engine
from slmflow.prediction.errors import PredictionError
from slmflow.prediction.job import (
    Identity,
    Plan,
    check_free,
    check_same,
    done_parts,
    find_plan,
    finish,
    forget,
    is_begun,
    is_staged,
    jobs,
    write_plan,
)
from slmflow.prediction.owner import owned
from slmflow.prediction.part import PartDone, PartJob
from slmflow.prediction.pinned import Pinned, pin
from slmflow.prediction.places import absolute, resolved
from slmflow.prediction.reading.files import InputFile, find_files, identity
from slmflow.prediction.staging import stage

Run = Callable[[Iterable[PartJob], Callable[[int], None]], Generator[PartDone, None, None]]


@dataclass(frozen=True)
class Asked:
    """What was typed. ``parameters`` are search options in place of the model's own."""

    model_uri: str
    input: str
    output: str
    engine: Engine
    predict: Predict
    parameters: Mapping[str, Any]
    threads: Any = "auto"  # hardware.threads; auto: as the model was packaged


@dataclass(frozen=True)
class Summary:
    """Of the whole job; ``seconds`` and ``new`` are of this time alone."""

    output: str
    manifest: Mapping[str, Any]
    model: Pinned
    parts: list[PartDone]
    new: list[PartDone]  # answered this time; the others are from before
    seconds: float  # from the first part's begin to the last one's end, load of the model included

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def failed(self) -> int:
        return sum(part.failed for part in self.parts)

    @property
    def first_error(self) -> str | None:
        return next((part.first_error for part in self.parts if part.failed), None)

    @property
    def tokens_per_second(self) -> float | None:
        """None where nothing was asked, or the model does not count."""
        made = sum(part.completion_tokens for part in self.new)
        return made / self.seconds if made else None


def predict(asked: Asked) -> Summary:
    """Answer every row that is not answered yet.

    Raises ``PredictionError`` where the output belongs to another job, ``DataError`` for an input
    that cannot be read, ``AskError`` where the model does not load or gives up.
    """
    engine = find_engine(asked.engine)
    with tempfile.TemporaryDirectory(prefix="slmflow-") as downloads:
        with console.step("find the model") as told:
            model = pin(asked.model_uri, asked.parameters, asked.threads, Path(downloads))
            told.append(model.spec.uri)
        return carry_out(
            asked.input,
            absolute(asked.output),
            model,
            asked.predict,
            lambda parts, answered: engine.run(parts, model.spec, asked.engine, answered),
        )


def carry_out(place: str, output: str, model: Pinned, settings: Predict, run: Run) -> Summary:
    """From the input to the manifest; ``run`` has the parts answered that are left."""
    files = _files(place, output)
    with owned(output):
        plan, done = _planned(files, output, model, settings)
        before = set(done)
        left = sum(rows for number, rows in enumerate(plan.parts) if number not in done)
        started = time.monotonic()
        if left:
            with (
                console.progress("answer the rows", left) as bar,
                closing(run(jobs(output, plan, done), bar.advance)) as ended,
            ):
                done |= {part.number: part for part in ended}
        seconds = time.monotonic() - started
        manifest = finish(output, plan, done)
    parts = [done[number] for number in sorted(done)]
    new = [part for part in parts if part.number not in before]
    return Summary(output, manifest, model, parts, new, seconds)


def demand_one_answer(summary: Summary) -> None:
    """Raises ``PredictionError`` where every row failed: then it is not the rows."""
    if summary.failed == summary.rows:
        raise PredictionError(
            f"all {summary.rows} rows failed; the first: {summary.first_error}; "
            "to ask again, add predict.overwrite=true to the same command"
        )


def _files(place: str, output: str) -> list[InputFile]:
    if "://" in output and set("*?[") & set(output):
        raise PredictionError(
            f"output={output} has one of * ? [ in it, which stores take for a pattern; give a "
            "folder without"
        )
    read, written = resolved(absolute(place)), resolved(output)
    if read == written:
        raise PredictionError(f"output={place} is the input, too; give another folder")
    if read[0] == written[0] and f"{written[1]}/".startswith(f"{read[1]}/"):
        raise PredictionError(
            f"output={output} lies within the input {place}, whose rows are read again when the "
            "job is gone on with; give another folder"
        )
    return find_files(place)


def _planned(
    files: list[InputFile], output: str, model: Pinned, settings: Predict
) -> tuple[Plan, dict[int, PartDone]]:
    """The plan that was begun and what is done of it, else a new one."""
    with console.step("read the input") as told:
        now = Identity(
            [identity(file) for file in files],
            model.identity,
            dict(model.parameters),
            settings.part_rows,
        )
        if settings.overwrite and not is_begun(output, now):
            forget(output)
        plan = find_plan(output)
        if plan is None:
            check_free(output)
        else:
            check_same(output, plan.identity, now)
        done = {} if plan is None else done_parts(output, plan)
        if plan is None or not is_staged(output, plan, done):
            divided = stage(files, output, settings.part_rows)
            plan = Plan(now, divided.part_rows, divided.renamed)
            write_plan(output, plan)
        told += _told(plan, done)
    return plan, done


def _told(plan: Plan, done: Mapping[int, PartDone]) -> Iterator[str]:
    yield f"{sum(plan.parts)} rows in {len(plan.parts)} part{'s' * (len(plan.parts) > 1)}"
    if done:
        yield f"{sum(part.rows for part in done.values())} rows answered before"
