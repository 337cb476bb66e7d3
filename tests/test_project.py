"""The files that name each other: MLproject, conf/, entrypoints/, the environment."""

import inspect
import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.utils.environment import _PythonEnv
from packaging.requirements import Requirement
from packaging.version import Version

from slmflow import workflows
from slmflow.config.store import SCHEMAS

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRY_POINTS: dict[str, Any] = PROJECT["entry_points"]
CONF = ROOT / "conf"
GROUPS = {path.parent.name for path in CONF.glob("*/*.yaml")}
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "constraints.txt")


def stems(folder: Path, pattern: str) -> set[str]:
    """Without what is no entry point: the package's marks, the lock of the models."""
    names = {path.name.partition(".")[0]: path for path in folder.glob(pattern)}
    marks = {"__init__", "__main__"}
    return {stem for stem, path in names.items() if stem not in marks and path.stem == stem}


def story_names() -> set[str]:
    """The functions of workflows.py that take what was typed."""
    return {
        name
        for name, function in inspect.getmembers(workflows, inspect.isfunction)
        if function.__module__ == workflows.__name__
        and list(inspect.signature(function).parameters) == ["invocation"]
    }


def test_an_entry_point_has_a_script_a_config_a_schema_and_a_story() -> None:
    names = set(ENTRY_POINTS)
    assert {"main", "transformers_pipeline", "custom_onnx", "evaluate"} <= names
    assert stems(ROOT / "entrypoints", "*.py") == names
    assert stems(CONF, "*.yaml") == names
    assert set(SCHEMAS) == names
    assert story_names() == names


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_a_script_runs_the_entry_point_of_its_name(name: str) -> None:
    script = (ROOT / "entrypoints" / f"{name}.py").read_text()
    assert f'run_entry_point("{name}")' in script
    command: str = ENTRY_POINTS[name]["command"]
    assert command.startswith(f"python -m entrypoints.{name} ")


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_a_parameter_names_a_group_and_leaves_its_default_to_the_config(name: str) -> None:
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    groups = {
        group
        for entry in config["defaults"]
        if isinstance(entry, dict)
        for group in entry
        if group in GROUPS - {"experiment", "local"}
    }
    parameters: dict[str, Any] = ENTRY_POINTS[name]["parameters"]
    for parameter, declared in parameters.items():
        if parameter in GROUPS:
            assert declared == {"type": "string", "default": "default"}
            assert not (CONF / parameter / "default.yaml").exists()
        else:
            assert parameter in config  # a key of its own, such as evaluate's models
            assert declared.get("default", "") == ""  # one that must be given has none
    assert set(parameters) & GROUPS == groups


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_a_command_hands_on_every_parameter_and_no_other(name: str) -> None:
    command: str = ENTRY_POINTS[name]["command"]
    parameters = set(ENTRY_POINTS[name]["parameters"])
    assert {field for _, field, _, _ in string.Formatter().parse(command) if field} == parameters
    for parameter in parameters:
        assert re.search(rf" {parameter}=(\{{|\[\{{){parameter}\}}", command)


def test_the_environment_is_one_that_every_manager_reads() -> None:
    assert PROJECT["conda_env"] == "conda.yaml"
    environment = _PythonEnv.from_conda_yaml(str(ROOT / "conda.yaml"))
    assert re.fullmatch(r"3\.11(\.\d+)?", environment.python)
    assert environment.dependencies == ["-r requirements.txt"]
    # The only form of version that uv and virtualenv match.
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    assert "python=3.11" in conda["dependencies"]
    assert not any("-e" in str(entry).split() for entry in conda["dependencies"])


def lines_of(name: str) -> list[str]:
    lines = [line.split(" #")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def requirements_of(name: str) -> list[Requirement]:
    return [Requirement(line) for line in lines_of(name) if not line.startswith("-")]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_can_be_parsed_and_include_files_that_exist(name: str) -> None:
    assert requirements_of(name)
    for line in lines_of(name):
        if line.startswith("-"):
            option, file = line.split()
            assert option in ("-r", "-c")
            assert (ROOT / file).is_file()


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_has_an_exact_version_within_its_range(name: str) -> None:
    assert "-c constraints.txt" in lines_of(name)
    pins: dict[str, list[Requirement]] = {}
    for pin in requirements_of("constraints.txt"):
        assert [specifier.operator for specifier in pin.specifier] == ["=="], str(pin)
        pins.setdefault(pin.name.lower(), []).append(pin)
    for requirement in requirements_of(name):
        for pin in pins[requirement.name.lower()]:
            (exact,) = pin.specifier
            assert requirement.specifier.contains(Version(exact.version)), str(requirement)
