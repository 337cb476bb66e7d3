"""Which files a model has and where they are, without fetching them."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slmflow import cache
from slmflow.checkout import PROJECT_ROOT
from slmflow.completeness import lacks_of_checkpoint, lacks_of_onnx
from slmflow.config.schema import Hardware, Model
from slmflow.doctor.folder import is_folder
from slmflow.doctor.needs import Shape, read_shape
from slmflow.errors import SourceError
from slmflow.lock_file import pinned
from slmflow.packaging.onnx_build import builder_options, builder_version, find_prebuilt
from slmflow.sources import CHECKPOINT_FILES, ONNX_FILES

SMALL = 100_000_000  # bytes that are read and hashed in well under a second


@dataclass(frozen=True)
class Weights:
    """Files of one folder or repository that a kind of model needs, with their sizes in bytes.

    ``here``: they are on this machine, whole. ``why_not`` says why nothing is known, and ``mend``
    what would change that.
    """

    source: str
    folder: bool  # a path, not a hub id
    files: Mapping[str, int] = field(default_factory=dict)
    here: bool = False
    to_fetch: int = 0  # bytes that a run will download
    commit: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)  # of its architecture
    why_not: str = ""
    mend: str = ""

    @property
    def size(self) -> int:
        return sum(self.files.values())

    @property
    def tensors(self) -> int:
        """Bytes of the weights alone."""
        return sum(size for name, size in self.files.items() if name.endswith(".safetensors"))

    @property
    def shape(self) -> Shape | None:
        return read_shape(self.config)


def checkpoint(model: Model, network: float | None) -> Weights:
    """Of the transformers model; ``network``: seconds for the hub's answer, None: not asked."""
    return look(model.source, model.revision, CHECKPOINT_FILES, lacks_of_checkpoint, network)


def prebuilt(model: Model, hardware: Hardware, network: float | None) -> Weights | None:
    """Of the publisher's ONNX model; None where one is to be built."""
    fitting = find_prebuilt(model, hardware)
    if fitting is None or model.onnx.source is None:
        return None
    patterns = [f"{fitting.folder}/{pattern}" for pattern in ONNX_FILES]

    def lacks(folder: Path) -> list[str]:
        return lacks_of_onnx(folder / fitting.folder)

    return look(model.onnx.source, model.onnx.revision, patterns, lacks, network)


def built(weights: Weights, hardware: Hardware) -> int | None:
    """Bytes of the ONNX model that an earlier run built from this checkpoint; None: not here."""
    revision = weights.commit
    if weights.folder:
        path = _folder(weights.source)
        if path is None or weights.size > SMALL:
            return None
        revision = f"sha256:{cache.files_digest(path, sorted(weights.files))}"
    key = {
        "source": "" if weights.folder else weights.source,
        "revision": revision or "",
        "provider": hardware.provider.value,
        "precision": hardware.precision.value,
        "options": " ".join(builder_options(hardware)),
        "builder": builder_version(),
    }
    manifest = cache.root() / "onnx" / f"{cache.key_digest(key)}.json"
    try:
        files: dict[str, dict[str, int]] = json.loads(manifest.read_text())["files"]
    except (OSError, ValueError, KeyError):
        return None
    return sum(about["size"] for about in files.values())


def look(
    source: str,
    revision: str | None,
    patterns: Sequence[str],
    lacks: Callable[[Path], list[str]],
    network: float | None,
) -> Weights:
    """A folder, else the hub client's cache, else what the hub says."""
    folder = _folder(source)
    if folder is not None:
        return _there(Weights(source, True), folder, patterns, lacks)
    if Path(source).is_absolute() or source.startswith(("./", "../", "~")):
        return Weights(
            source, True, why_not=f"there is no folder {source}", mend="model.source=..."
        )
    try:
        locked = pinned(source, revision)
    except SourceError as error:
        return Weights(source, False, why_not=str(error), mend="./run lock")
    at = revision if locked is None else locked.commit
    cached = _cached(source, at, patterns, lacks)
    if cached.here or network is None:
        return cached
    from slmflow.doctor.hub import ask  # late: httpx is for this alone

    asked = ask(source, at, patterns, network)
    have = cached.files if cached.commit == asked.commit else {}
    missing = sum(size for name, size in asked.files.items() if have.get(name) != size)
    return replace(asked, to_fetch=missing)


def config_name(patterns: Sequence[str]) -> str:
    """The file that tells the shape: of a checkpoint, or of an ONNX model in a folder."""
    folder, _, _ = patterns[0].rpartition("/")
    return f"{folder}/genai_config.json" if folder else "config.json"


def offline() -> bool:
    """As the hub's client reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_cache() -> Path:
    """Where the hub's client keeps downloads (huggingface_hub/constants.py), not importing it."""
    home = os.environ.get("HF_HOME")
    home = home or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(chosen or f"{home}/hub")).expanduser()


def _folder(source: str) -> Path | None:
    path = Path(source).expanduser()
    path = path if path.is_absolute() else PROJECT_ROOT / path
    return path if is_folder(path) else None


def _cached(
    source: str,
    revision: str | None,
    patterns: Sequence[str],
    lacks: Callable[[Path], list[str]],
) -> Weights:
    """The snapshot that the hub client's cache holds of the revision, as far as it goes."""
    repository = hub_cache() / f"models--{source.replace('/', '--')}"
    try:
        commit = (repository / "refs" / (revision or "main")).read_text().strip()
    except OSError:
        commit = revision or ""
    snapshot = repository / "snapshots" / commit
    if not commit or not is_folder(snapshot):
        return Weights(source, False, why_not="no download of it is on this machine")
    return _there(Weights(source, False, commit=commit), snapshot, patterns, lacks)


def _there(
    about: Weights, folder: Path, patterns: Sequence[str], lacks: Callable[[Path], list[str]]
) -> Weights:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(found)}
    missing = lacks(folder)
    config = _config(folder / config_name(patterns))
    why_not = f"it lacks {', '.join(missing[:3])}" if missing else ""
    return replace(about, files=files, here=not missing, config=config, why_not=why_not)


def _config(file: Path) -> Mapping[str, Any]:
    try:
        read = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
