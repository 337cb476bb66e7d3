"""The facts and the question templates of this folder, and the held-out set made of them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
HELDOUT_SEED = 0  # the held-out set stays the same whatever seed a training run takes
HELDOUT_PER_RELATION = 16


@dataclass(frozen=True)
class Relation:
    """One kind of question: its facts and the wordings that ask for them.

    The frames are the same for all relations; they teach that what is asked for matters more than
    the words around it.
    """

    name: str
    facts: dict[str, str]
    templates: list[str]
    frames: list[str]
    heldout: list[str]


def read_yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    return content


def load_relations() -> list[Relation]:
    facts = read_yaml("facts.yaml")
    frames = read_yaml("chat.yaml")["frames"]
    relations = []
    for name, wording in read_yaml("paraphrases.yaml").items():
        if "inverse_of" in wording:
            own = {answer: subject for subject, answer in facts[wording["inverse_of"]].items()}
        else:
            own = facts[name]
        framed = [frame.replace("{noun}", wording["noun"]) for frame in frames]
        relations.append(Relation(name, own, wording["train"], framed, wording["heldout"]))
    return relations


def ask(template: str, subject: str) -> str:
    article = "an" if subject[:1].lower() in "aeiou" else "a"
    return template.format(s=subject, a=f"{article} {subject}")


def heldout_rows() -> list[dict[str, Any]]:
    """The evaluation set: a balanced, fixed sample of the held-out templates.

    The relations take turns, so that the first rows of the file are balanced too.
    """
    rng = random.Random(HELDOUT_SEED)
    rows = []
    for relation in load_relations():
        pairs = [(subject, template) for subject in relation.facts for template in relation.heldout]
        count = min(HELDOUT_PER_RELATION, len(pairs))
        for number, (subject, template) in enumerate(rng.sample(pairs, count)):
            rows.append(
                {
                    "id": f"{relation.name}-{number:02d}",
                    "messages": [{"role": "user", "content": ask(template, subject)}],
                    "references": [relation.facts[subject]],
                    "tags": {"relation": relation.name},
                }
            )
    return sorted(rows, key=lambda row: row["id"].rpartition("-")[2])


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
