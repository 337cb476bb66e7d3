"""What the entry point lock does: the commits of the configured models, asked and written down."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmflow import console, hub, lock_file
from slmflow.config.schema import Model
from slmflow.errors import SourceError
from slmflow.hub import Wanted
from slmflow.lock_file import Contents, Entry
from slmflow.sources import checkpoint_wanted, contents, onnx_wanted

FOLDER = "sha256:"  # how the revision of a folder's files begins


@dataclass(frozen=True)
class Pin:
    """A repository or folder of the config, and what is fetched of it."""

    source: str
    revision: str | None
    wanted: Wanted

    @property
    def key(self) -> tuple[str, str]:
        return self.source, self.revision or ""


def lock_models(models: Mapping[str, Model], all_models: bool) -> list[Entry]:
    """Write the lock anew, with earlier entries where a model cannot be reached. The entries that
    were resolved now.

    ``all_models``: entries of others are dropped. Raises ``SourceError`` where nothing could be
    locked, where the hub does not answer, or where the lock cannot be written, which is told
    before anybody is asked: then nothing is written.
    """
    lock_file.demand_writable()
    earlier = {entry.key: entry for entry in lock_file.read()}
    pins = pins_of(models.values())
    asked: dict[tuple[str, str], Entry] = {}
    refused: list[str] = []
    for pin in pins:
        try:
            found = Entry(pin.source, pin.revision, contents(pin.source, pin.revision, pin.wanted))
        except (hub.Gated, hub.NoRepository) as error:
            kept = "its earlier entry stays" if pin.key in earlier else "it is not locked"
            refused.append(f"{error}; {kept}")
            continue
        except hub.Unreachable as error:
            place = lock_file.place()
            left = "is left as it was" if place.is_file() else "is not written"
            raise SourceError(
                f"{error}, so {pin.source} cannot be locked, and {place} {left}; repeat with a "
                "connection, or name models that lie in folders (models=phi3_demo)"
            ) from None
        asked[pin.key] = found
        console.note(_told(found, earlier.get(pin.key)))
    for one in refused:
        console.prose(one)
    if not asked:
        raise SourceError(f"none of {', '.join(pin.source for pin in pins)} could be locked")
    keys = {pin.key for pin in pins} if all_models else set(earlier) | set(asked)
    for key in sorted(set(earlier) - keys):
        console.note(f"{key[0]}: no model of conf/model/ names it at {_at(key)} any more; dropped")
    entries = [entry for key, entry in (earlier | asked).items() if key in keys]
    lock_file.write(entries)
    return list(asked.values())


def as_recorded(resolved: Iterable[Entry]) -> dict[str, Any]:
    """``locked.json``: by this a rerun knows what each model was resolved to."""
    models = {
        f"{entry.source} {_at(entry.key)}": {
            "commit": entry.contents.commit,
            "files": {name: of.as_yaml() for name, of in sorted(entry.contents.files.items())},
        }
        for entry in resolved
    }
    return {"format": 1, "models": models}


def pins_of(models: Iterable[Model]) -> list[Pin]:
    """Each (source, revision) once, sorted; models may share one."""
    checkpoints: set[tuple[str, str]] = set()
    onnx: dict[tuple[str, str], list[Model]] = {}
    for model in models:
        checkpoints.add((model.source, model.revision or ""))
        if model.onnx.source is not None and model.onnx.prebuilt:
            onnx.setdefault((model.onnx.source, model.onnx.revision or ""), []).append(model)
    pins = [
        # With its code, whether trusted or not: who trusts it later finds it locked.
        Pin(source, revision or None, checkpoint_wanted(True, source))
        for source, revision in checkpoints
    ]
    pins += [Pin(key[0], key[1] or None, onnx_wanted(_folders(of))) for key, of in onnx.items()]
    return sorted(_merged(pins), key=lambda pin: pin.key)


def _merged(pins: Sequence[Pin]) -> list[Pin]:
    """A repository may hold a checkpoint and ready ONNX folders."""
    one: dict[tuple[str, str], Pin] = {}
    for pin in pins:
        known = one.get(pin.key)
        patterns = [*(known.wanted.patterns if known else []), *pin.wanted.patterns]
        wanted = Wanted(patterns, pin.wanted.notices, pin.wanted.lacks)
        one[pin.key] = Pin(pin.source, pin.revision, wanted)
    return list(one.values())


def _folders(models: Sequence[Model]) -> list[str]:
    return list(dict.fromkeys(one.folder for model in models for one in model.onnx.prebuilt))


def _told(entry: Entry, earlier: Entry | None) -> str:
    size = console.size(sum(file.size for file in entry.contents.files.values()))
    folder = entry.contents.commit.startswith(FOLDER)
    at = "" if folder else f" {_at(entry.key)}"
    what = f"{entry.source}{at} = {_short(entry.contents)}"
    if earlier is None:
        return f"{what}  new, {len(entry.contents.files)} files, {size}"
    if earlier.contents == entry.contents:
        return f"{what}  as before"
    if earlier.contents.commit == entry.contents.commit:
        return f"{what}  other files than before"
    return f"{what}  was {_short(earlier.contents)}"


def _at(key: tuple[str, str]) -> str:
    return f"({key[1] or 'default branch'})"


def _short(of: Contents) -> str:
    return of.commit[: 12 + (len(FOLDER) if of.commit.startswith(FOLDER) else 0)]
