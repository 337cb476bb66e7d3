"""The entry point export, within its run: the model, what lies beside it, manifest and check."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import mlflow

from slmflow import console
from slmflow.config.export import Format
from slmflow.export import verify
from slmflow.export.errors import ExportError
from slmflow.export.model import describe, fetch
from slmflow.export.place import demand_free, move_into_place, output_folder, staging_beside
from slmflow.export.write import write_format
from slmflow.served.digests import file_sha256


@dataclass(frozen=True)
class Asked:
    model_uri: str
    output: str
    format: Format


def export(asked: Asked) -> None:
    """Raises ``UserError``; then nothing is left at the output."""
    folder = output_folder(asked.output)
    demand_free(folder)
    console.heading(f"export {asked.model_uri} as {asked.format.name}")
    with staging_beside(folder) as staging:
        made = staging / "export"
        made.mkdir()
        with console.step("fetch the model, whole") as told:
            model = fetch(asked.model_uri, made / "model")
            told.append(model.uri)
        with console.step("write what lies beside it"):
            write_format(made, model, asked.format)
            write_manifest(made, {"export": asked.format.name.value, **describe(model)})
        with console.step("move it into place") as told:
            moved = move_into_place(made, folder)
            told.append(str(folder) if moved else f"{folder} has it already, file by file")
    with console.step("verify what was written") as told:
        told.append(check(folder))
    _log(folder)
    console.commands("next", [("how to use it", f"cat {folder / 'README.md'}")])


def write_manifest(folder: Path, about: dict[str, object]) -> None:
    """Lists every file that is there, verify.py among them."""
    shutil.copyfile(verify.__file__, folder / "verify.py")
    files = {name: verify.about(folder / name) for name in sorted(verify.names(folder))}
    content = {"format": 1, **about, "files": files}
    (folder / verify.MANIFEST).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def check(folder: Path) -> str:
    """What was found, in short. Raises ``ExportError`` where the disk holds something else."""
    faults = verify.faults(folder)
    if faults:
        raise ExportError(
            f"{folder} is not what was written: {', '.join(faults[:3])}; export again"
        )
    files = verify.read_files(folder).values()
    return f"{len(files)} files, {console.size(sum(int(str(of['size'])) for of in files))}"


def _log(folder: Path) -> None:
    """The manifest, by whose digest an export is known wherever it is carried."""
    mlflow.log_artifact(str(folder / verify.MANIFEST))
    mlflow.set_tag("slmflow.export.manifest", file_sha256(folder / verify.MANIFEST))
