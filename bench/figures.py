"""What was measured: a value a round, their median and spread, a table, a JSON file."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from slmflow import console
from slmflow.machine import installed_version
from slmflow.served.cores import available_cores

PACKAGES = ("mlflow", "onnxruntime-genai", "torch", "transformers")


@dataclass(frozen=True)
class Figure:
    """One measured thing. A target is for the median, at least or at most."""

    name: str
    values: Sequence[float]  # one a round
    unit: str = "x"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    @property
    def met(self) -> bool | None:
        if self.at_least is not None:
            return self.median >= self.at_least
        return None if self.at_most is None else self.median <= self.at_most


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round: a machine that drifts slows both sides of a round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def show(title: str, figures: Sequence[Figure]) -> None:
    rounds = max(len(figure.values) for figure in figures)
    console.table(
        ("", "median", "lowest", "highest", "unit", "target", ""),
        [
            (
                figure.name,
                spelt(figure.median),
                spelt(min(figure.values)),
                spelt(max(figure.values)),
                figure.unit,
                figure.target,
                {True: "met", False: "MISSED", None: ""}[figure.met],
            )
            for figure in figures
        ],
        title=f"{title} ({rounds} rounds, {machine()['cores']} cores)",
    )


def write(path: Path | None, bench: str, figures: Sequence[Figure], **about: Any) -> None:
    """The figures with every round's value, where a file was asked for."""
    if path is None:
        return
    rows = [
        {
            "name": figure.name,
            "unit": figure.unit,
            "median": figure.median,
            "target": figure.target or None,
            "met": figure.met,
            "values": list(figure.values),
        }
        for figure in figures
    ]
    content = {
        "bench": bench,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "packages": {package: installed_version(package) for package in PACKAGES},
        **about,
        "figures": rows,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def machine() -> dict[str, Any]:
    """In general terms; what else ran on it shows in the load."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": available_cores(),
        "load": round(os.getloadavg()[0], 2),
    }


def spelt(value: float) -> str:
    """Three significant digits, no exponent."""
    if value == int(value) and abs(value) < 1000:
        return f"{value:.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
