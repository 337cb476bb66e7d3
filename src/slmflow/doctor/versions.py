"""Python and its packages, against what this project was tried with."""

import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from slmflow.checkout import PROJECT_ROOT
from slmflow.config.schema import PACKAGES
from slmflow.doctor.finding import Finding, failure, ok, warning
from slmflow.listing import first
from slmflow.machine import installed_version

PYTHON = (3, 11)
SHOWN = 4  # packages that are told by name


def check_python() -> Finding:
    have = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == PYTHON:
        return ok("python", f"{have} in {shown(Path(sys.prefix))}")
    wanted = ".".join(map(str, PYTHON))
    return failure(
        "python", f"{have}; this project needs {wanted}", f"python{wanted} -m venv .venv"
    )


def check_packages(
    requirements: Path = PROJECT_ROOT / "requirements.txt",
    constraints: Path = PROJECT_ROOT / "constraints.txt",
    indirect: bool = True,
) -> Finding:
    """Missing, or outside of requirements.txt: a failure. Not as pinned: a warning.

    ``indirect``: what those packages themselves need, too.
    """
    direct = _by_name(_read(requirements))
    names = _closure(direct) if indirect else list(direct)
    have = {name: installed_version(name) for name in names}
    others = {name for name in map(canonicalize_name, PACKAGES) if installed_version(name)}
    if others:  # one of the three; which one is right is the hardware's matter
        have = {name: version for name, version in have.items() if name not in PACKAGES}
    missing = sorted(name for name, version in have.items() if version is None)
    unfit = [_wrong(direct[name], have[name]) for name in direct if name in have]
    pins = _by_name(_read(constraints))
    differing = [_wrong(pins[name], have[name]) for name in have if name in pins]
    mend = f"{pip()} install -r {shown(requirements)}"
    wrong = [text for text in unfit if text]
    if missing or wrong:
        told = [*(f"{name} is missing" for name in missing), *wrong]
        return failure("packages", first(told, SHOWN, "; "), mend)
    if any(differing):
        return warning("packages", first([text for text in differing if text], SHOWN, "; "), mend)
    return ok("packages", f"{len(have)} as in {constraints.name}")


def shown(path: Path) -> str:
    """From the project's folder, where it lies in there: as one types it."""
    return str(path.relative_to(PROJECT_ROOT) if path.is_relative_to(PROJECT_ROOT) else path)


def pip() -> str:
    """Of the environment that runs this, whichever is active in the shell."""
    return f"{shown(Path(sys.executable))} -m pip"


def _wrong(wanted: Requirement, have: str | None) -> str:
    # "==2.13.0" is fulfilled by 2.13.0+cpu: a build's local label does not count
    if have is None or wanted.specifier.contains(have, prereleases=True):
        return ""
    return f"{wanted.name} is {have}, not {str(wanted.specifier).removeprefix('==')}"


def _read(file: Path) -> Iterable[Requirement]:
    lines = (line.partition(" #")[0].strip() for line in file.read_text("utf-8").splitlines())
    return (Requirement(line) for line in lines if line and not line.startswith(("#", "-")))


def _by_name(requirements: Iterable[Requirement]) -> Mapping[str, Requirement]:
    """Those that hold on this machine."""
    return {
        canonicalize_name(one.name): one
        for one in requirements
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def _closure(direct: Mapping[str, Requirement]) -> list[str]:
    """The packages, and all that they need, as they themselves declare it."""
    found: dict[str, None] = {}
    left = [(name, one.extras) for name, one in direct.items()]
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        name, extras = left.pop()
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        found[name] = None
        try:
            declared = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for one in declared:
            wanted = ({"extra": extra} for extra in (extras or {""}))
            if one.marker is None or any(one.marker.evaluate(context) for context in wanted):
                left.append((canonicalize_name(one.name), one.extras))
    return list(found)
