"""What the tracking server holds of a run, and of the runs below it. Nothing else is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from slmflow.answering.model_files import CONTENTS
from slmflow.tracking.names import ENTRY_POINT, LOCKED, OVERRIDES, PARENT, PLAN, POINT
from slmflow.tracking.parameters import whole_tag

CONFIG = "config.yaml"
PROVENANCE = "provenance/provenance.json"
DOCUMENTS = (
    CONFIG,
    *("resolved.json", "weights.json", CONTENTS, "probe.json", "evaluation.json"),
    *("manifest.json", LOCKED, PLAN),
)
"""Artifacts that say what a run was given and what came out of it."""


@dataclass(frozen=True)
class Record:
    """``documents`` by the names of their artifacts, parsed; those that a run has not are absent.

    ``parts``: the runs below it: points by number, others in the order in which they began.
    """

    run: Run
    documents: Mapping[str, Any]
    parts: tuple["Record", ...]

    @property
    def run_id(self) -> str:
        return str(self.run.info.run_id)

    @property
    def name(self) -> str:
        return str(self.run.info.run_name)

    @property
    def tags(self) -> dict[str, str]:
        tags: dict[str, str] = self.run.data.tags
        return tags

    @property
    def entry_point(self) -> str | None:
        """None: a part of a run that is none by itself, as a candidate of an evaluation."""
        return self.tags.get(ENTRY_POINT)

    @property
    def values(self) -> Mapping[str, Any] | None:
        """The composed config; None where it failed before it had one."""
        found: Mapping[str, Any] | None = self.documents.get(CONFIG)
        return found

    @property
    def choices(self) -> dict[str, str]:
        named = {key.removeprefix("choice."): value for key, value in self.tags.items()}
        return {key: value for key, value in named.items() if f"choice.{key}" in self.tags}

    @property
    def varies(self) -> tuple[str, ...]:
        """Of a sweep's point: what it was told beside what all were."""
        if OVERRIDES not in self.tags:
            return ()
        return tuple(json.loads(whole_tag(self.run, OVERRIDES, MlflowClient())))

    @property
    def sweep(self) -> bool:
        return PLAN in self.documents

    @property
    def began(self) -> str:
        begun = datetime.fromtimestamp(self.run.info.start_time / 1000, UTC)
        return begun.strftime("%Y-%m-%d %H:%M UTC")

    def everywhere(self) -> "list[Record]":
        """Itself and all below it."""
        return [self, *(one for part in self.parts for one in part.everywhere())]

    def artifact(self, name: str, folder: Path) -> Path | None:
        """A copy in the folder; None where the run has none of that name."""
        client = MlflowClient()
        if name not in {file.path for file in client.list_artifacts(self.run_id)}:
            return None
        return Path(client.download_artifacts(self.run_id, name, str(folder)))


def read(run: Run, client: MlflowClient | None = None) -> Record:
    client = client or MlflowClient()
    return Record(run, _documents(run, client), tuple(_parts(run, client)))


def parent_of(record: Record) -> Run | None:
    parent = record.tags.get(PARENT)
    return None if parent is None else MlflowClient().get_run(parent)


def _documents(run: Run, client: MlflowClient) -> dict[str, Any]:
    run_id = run.info.run_id
    there = {file.path for file in client.list_artifacts(run_id)}
    names = [name for name in DOCUMENTS if name in there]
    names += [PROVENANCE] if Path(PROVENANCE).parent.name in there else []
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for name in names:
            text = Path(client.download_artifacts(run_id, name, folder)).read_text("utf-8")
            found[name] = yaml.safe_load(text) if name == CONFIG else json.loads(text)
    return found


def _parts(run: Run, client: MlflowClient) -> list[Record]:
    """Without the earlier attempts of a sweep's point, which lie below the last one."""
    below = f"tags.`{PARENT}` = '{run.info.run_id}'"
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([run.info.experiment_id], below, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    attempts = POINT in run.data.tags
    kept = [one for one in found if not (attempts and POINT in one.data.tags)]
    kept.sort(key=lambda one: (int(one.data.tags.get(POINT, "0")), int(one.info.start_time)))
    return [read(one, client) for one in kept]
