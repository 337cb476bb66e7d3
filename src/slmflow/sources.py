"""Where weights come from: a folder, or a repository of the Hugging Face hub."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slmflow import cache, completeness, hub, lock_file, remote_code
from slmflow.checkout import PROJECT_ROOT
from slmflow.errors import SourceError
from slmflow.hub import Announce, Wanted
from slmflow.lock_file import Contents, Sum
from slmflow.served.digests import file_sha256

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
CODE_FILES = ("*.py",)
ONNX_FILES = ("*.onnx", "*.onnx.data", "*.onnx_data", "*.json", "*.jinja", "*.txt", "*.model")
NOTICES = ("LICENSE*", "README.md")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class LocalModel:
    """Weights on this machine.

    ``source`` is the hub id or folder that was configured, ``revision`` the hub's commit or
    sha256:... of a folder's files. ``files`` are names in ``path``: what belongs to the model,
    whatever else lies there. ``notices`` are its licence and card. ``frozen``: nobody writes these
    files again (the hub's cache, this project's), so that links may share them. ``code``: those
    files that are Python and run when the checkpoint is loaded.
    """

    path: Path
    source: str
    revision: str
    files: tuple[str, ...]
    notices: tuple[Path, ...] = ()
    frozen: bool = False
    code: tuple[str, ...] = ()


def find_checkpoint(
    source: str, revision: str | None, announce: Announce, own_code: bool = False
) -> LocalModel:
    """A transformers checkpoint: configuration, tokenizer, safetensors.

    ``own_code``: with the Python files that it brings; nothing of them is run here. Raises
    ``SourceError`` where it is incomplete, cannot be fetched or cannot be loaded without them.
    """
    wanted = checkpoint_wanted(own_code, source)
    found = _locate(source, revision, wanted, announce)
    path, lacking = found.path, completeness.lacks_of_checkpoint(found.path)
    if completeness.WEIGHTS in lacking:
        _refuse_pickles(source, [*found.others, *_matching(path, PICKLES)])
    if lacking:
        raise SourceError(
            f"{source} has no {lacking[0]}: a transformers checkpoint holds config.json, "
            "tokenizer_config.json, the tokenizer's vocabulary and *.safetensors (other weight "
            "formats are not loaded)"
        )
    model = _local_model(path, found, source, wanted, path)
    code = _code(source, path, model.revision, own_code)
    if absent := [name for name in code if name not in model.files]:
        if lock_file.pinned(source, revision) is not None:
            raise lock_file.of_others(source, ", ".join(absent))
        raise SourceError(f"{source} names {', '.join(absent)} in auto_map and has no such file")
    own = tuple(name for name in model.files if name.endswith(".py"))
    return replace(model, code=own) if code else model


def find_onnx(source: str, revision: str | None, folder: str, announce: Announce) -> LocalModel:
    """A folder of ready ONNX files. Raises ``SourceError``."""
    wanted = onnx_wanted([folder])
    found = _locate(source, revision, wanted, announce)
    if lacking := wanted.lacks(found.path):
        raise SourceError(
            f"{source} has no {lacking[0]}, so it is no model of the ONNX Runtime "
            "generate() API; see model.onnx.prebuilt"
        )
    return _local_model(found.path / folder, found, f"{source}/{folder}", wanted, found.path)


def built_model(path: Path, checkpoint: LocalModel) -> LocalModel:
    """What was built from a checkpoint: every file of the folder, under the same licence."""
    return LocalModel(
        path,
        checkpoint.source,
        checkpoint.revision,
        _matching(path, ["*"]),
        checkpoint.notices,
        frozen=True,
    )


def checkpoint_wanted(own_code: bool, source: str) -> Wanted:
    patterns = (*CHECKPOINT_FILES, *CODE_FILES) if own_code else CHECKPOINT_FILES

    def examine(path: Path, revision: str) -> object:
        return _code(source, path, revision, own_code)

    return Wanted(patterns, NOTICES, completeness.lacks_of_checkpoint, examine)


def onnx_wanted(folders: Sequence[str]) -> Wanted:
    patterns = [f"{folder}/{pattern}" for folder in folders for pattern in ONNX_FILES]

    def lacks(path: Path) -> list[str]:
        return [
            f"{one}/{name}" for one in folders for name in completeness.lacks_of_onnx(path / one)
        ]

    return Wanted(patterns, NOTICES, lacks)


def contents(source: str, revision: str | None, wanted: Wanted) -> Contents:
    """What the lock would say of it: asked of the hub now, or read from the folder."""
    folder = _folder(source, revision)
    if folder is None:
        return hub.contents(source, revision, wanted)
    names = _below(folder, wanted)
    if not names:
        raise SourceError(f"{source} holds none of the files {', '.join(wanted.patterns)}")
    files = {name: _sum(folder / name) for name in names}
    return Contents(f"sha256:{cache.files_digest(folder, names)}", files)


@dataclass(frozen=True)
class _Found:
    """``commit``, and the files of it that were checked: where it comes from the hub."""

    path: Path
    commit: str | None = None
    files: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def _locate(source: str, revision: str | None, wanted: Wanted, announce: Announce) -> _Found:
    folder = _folder(source, revision)
    if folder is not None:
        _hold_against_lock(source, folder, wanted)
        return _Found(folder)
    try:
        snapshot = hub.download(source, revision, wanted, announce)
    except hub.NoRepository:
        raise SourceError(
            f"{source} is neither a folder (looked in {PROJECT_ROOT}) nor a repository that the "
            "hub shows to you; check model.source, or set HF_TOKEN for a private one"
        ) from None
    return _Found(snapshot.path, snapshot.commit, snapshot.files, snapshot.others)


def _folder(source: str, revision: str | None) -> Path | None:
    """None where it is a name on the hub."""
    local = Path(source).expanduser()
    local = local if local.is_absolute() else PROJECT_ROOT / local
    if local.is_dir():
        if revision is not None:
            raise SourceError(
                f"model revision {revision!r} was given for the folder {source}; folders have no "
                "revisions: leave it null"
            )
        return local
    if Path(source).is_absolute() or source.startswith(("./", "../", "~")):
        raise SourceError(f"there is no folder {source}; check model.source and model.onnx.source")
    return None


def _hold_against_lock(source: str, folder: Path, wanted: Wanted) -> None:
    locked = lock_file.pinned(source, None)
    if locked is None:
        return
    expected = wanted.needed(locked).files
    if not expected:
        raise lock_file.of_others(source, ", ".join(wanted.patterns))
    names = sorted({*expected, *_below(folder, wanted)})
    differing = [
        name
        for name in names
        if not (folder / name).is_file() or _sum(folder / name) != expected.get(name)
    ]
    if differing:
        raise SourceError(
            f"{source}: {', '.join(differing)} differ from {lock_file.place().name}; take the "
            "files that were locked, or type ./run lock where these are right"
        )


def _refuse_pickles(source: str, names: Sequence[str]) -> None:
    pickles = sorted(name for name in names if any(Path(name).match(one) for one in PICKLES))
    if pickles:
        raise SourceError(
            f"{source} has no *.safetensors, only pickles ({', '.join(pickles[:3])}): reading one "
            "can run any code, so they are not loaded; take a repository with safetensors, or "
            "convert it where you trust it (transformers: from_pretrained, then save_pretrained) "
            "and set model.source to the new folder"
        )


def _code(source: str, path: Path, revision: str, own_code: bool) -> list[str]:
    """The Python files that loading the checkpoint runs; ``SourceError`` where they must not."""
    classes = remote_code.named(path) if own_code else remote_code.needed(path)
    files = remote_code.modules(classes)
    at = f"{source} at {revision}"
    if elsewhere := [one for one in classes if remote_code.ELSEWHERE in one]:
        raise SourceError(
            f"{at} runs code of another repository ({', '.join(elsewhere)}), at no commit that it "
            "names; copy both into one folder, name the classes there in auto_map, and set "
            "model.source to it"
        )
    if classes and not own_code:
        raise SourceError(
            f"{at} is loaded by code of its own ({', '.join(files)}), which is not run unasked; "
            "read it, and where you trust it set trust_remote_code: true in the model's config "
            "(-P model.trust_remote_code=true); what to confirm is told then"
        )
    if tokenizer := remote_code.needed_tokenizer(path):
        raise SourceError(
            f"{at} has a tokenizer of its own ({', '.join(tokenizer)}), which MLflow's "
            "transformers flavour cannot package; convert it to a tokenizer.json and take "
            "auto_map out of tokenizer_config.json"
        )
    return files


def _local_model(
    path: Path, found: _Found, source: str, wanted: Wanted, notices: Path
) -> LocalModel:
    files = _names(path, found, [pattern.rpartition("/")[2] for pattern in wanted.patterns])
    revision = found.commit or f"sha256:{cache.files_digest(path, files)}"
    told = tuple(notices / name for one in NOTICES for name in _names(notices, found, [one]))
    return LocalModel(path, source, revision, files, told, frozen=found.commit is not None)


def _names(folder: Path, found: _Found, patterns: Sequence[str]) -> tuple[str, ...]:
    """What matches directly in the folder; of a download only what was checked."""
    names = _matching(folder, patterns)
    if found.commit is None:
        return names
    return tuple(
        name for name in names if (folder / name).relative_to(found.path).as_posix() in found.files
    )


def _below(folder: Path, wanted: Wanted) -> list[str]:
    paths = {path for pattern in wanted.patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _sum(path: Path) -> Sum:
    return Sum(path.stat().st_size, sha256=file_sha256(path))


def _matching(folder: Path, patterns: Sequence[str]) -> tuple[str, ...]:
    names = {file.name for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return tuple(sorted(names))
