"""Where the rows of a set lie: a file, a folder or MLflow."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slmflow.checkout import PROJECT_ROOT
from slmflow.errors import DataError
from slmflow.evaluation.data.csv_file import read_csv
from slmflow.evaluation.data.folder import PROMPTS, read_folder
from slmflow.evaluation.data.json_lines import read_json_lines
from slmflow.evaluation.data.mlflow_records import Records
from slmflow.evaluation.data.parquet import read_parquet
from slmflow.evaluation.data.raw import RawRow
from slmflow.tracking.project_source import relative_paths

MLFLOW = "mlflow:"
READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
ALLOWED = (
    f"allowed: a file ({', '.join(READERS)}), a folder of prompts ({', '.join(PROMPTS)}) or an "
    f"MLflow evaluation dataset ({MLFLOW}NAME)"
)


@dataclass(frozen=True)
class Origin:
    read: Callable[[], Iterator[RawRow]]  # from the beginning, as often as it is called
    path: Path | None  # None: in MLflow
    dataset_id: str | None  # None: on disk


def find_origin(text: str) -> Origin:
    """Relative paths begin at the repository's root. Raises ``DataError``."""
    if text.startswith(MLFLOW):
        records = Records(text.removeprefix(MLFLOW))
        return Origin(records.read, None, records.dataset_id)
    if "://" in text:
        raise DataError(f"data.path={text} is an address; download it first ({ALLOWED})")
    path = PROJECT_ROOT / Path(text).expanduser()
    if path.is_dir():
        return Origin(lambda: read_folder(path), path, None)
    if not path.exists():
        raise DataError(f"data.path={text}: there is no {path}{relative_paths(text)}; {ALLOWED}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"data.path={text} ends in {path.suffix or 'nothing known'}; {ALLOWED}")
    return Origin(lambda: reader(path), path, None)
