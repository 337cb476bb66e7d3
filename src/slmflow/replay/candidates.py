"""The candidates of two evaluations, paired by name."""

import re
from collections.abc import Mapping
from typing import Any

VERSION = re.compile(r"(^| )v\d+$|/\d+$")
"""How a label ends: "custom_onnx v2", "custom_onnx phi3-demo/2"."""


def paired(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Of two ``evaluation.json``: labels of now by those of then, in the order of then. Those that
    are the same, else those of one name, as ``main`` packages its models anew."""
    was, left = labels(then), labels(now)
    found = {label: label for label in was if label in left}
    left = [label for label in left if label not in found]
    for label in (one for one in was if one not in found):
        other = next((one for one in left if _name(one) == _name(label)), None)
        if other is not None:
            found[label] = other
            left.remove(other)
    return {label: found[label] for label in was if label in found}


def labels(evaluation: Mapping[str, Any]) -> list[str]:
    return [candidate["label"] for candidate in evaluation["candidates"]]


def _name(label: str) -> str:
    return VERSION.sub("", label)
