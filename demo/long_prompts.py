"""Writes long_prompts.jsonl: reading passages of many lengths, each with a question at its end.

python demo/long_prompts.py
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from data import HERE, ask, read_yaml, write_rows

WORDS = (200, 300, 450, 600, 800, 1000, 1300, 1600, 2000, 2500, 3200, 4000)  # at least, a passage
KINDS = {
    "country": ("capital", "continent", "language", "currency"),
    "animal": ("animal_class", "legs", "young"),
    "element": ("symbol", "atomic_number"),
    "book": ("author",),
    "picture": ("painter",),
    "music": ("composer",),
}
"""What a paragraph of each kind tells; a subject needs all of it."""


def paragraphs(
    facts: dict[str, dict[str, str]], texts: dict[str, Any], rng: random.Random
) -> Iterator[tuple[str, str, str]]:
    """Kind, subject and text, each subject once, in a random order."""
    subjects = [
        (kind, subject)
        for kind, relations in KINDS.items()
        for subject in facts[relations[0]]
        if all(subject in facts[relation] for relation in relations)
    ]
    for kind, subject in rng.sample(subjects, len(subjects)):
        told = {relation: facts[relation][subject] for relation in KINDS[kind]}
        text = rng.choice(texts[kind]).format(s=subject, **told)
        yield kind, subject, f"{text} {rng.choice(texts['between'])}"


def passage(
    words: int, facts: dict[str, dict[str, str]], texts: dict[str, Any], rng: random.Random
) -> tuple[str, list[str]]:
    """The text, and the countries that it tells of, in order."""
    parts = [rng.choice(texts["opening"])]
    countries = []
    for kind, subject, text in paragraphs(facts, texts, rng):
        if sum(len(part.split()) for part in parts) >= words and countries:
            break
        parts.append(text)
        countries += [subject] if kind == "country" else []
    return "\n\n".join(parts), countries


def rows() -> list[dict[str, Any]]:
    facts, texts = read_yaml("facts.yaml"), read_yaml("passages.yaml")
    made = []
    for words in WORDS:
        rng = random.Random(words)
        text, countries = passage(words, facts, texts, rng)
        country = countries[len(countries) // 2]
        relation = rng.choice(sorted(texts["question"]))
        question = ask(texts["question"][relation], country)
        made.append(
            {
                "id": f"words-{words:04d}",
                "messages": [{"role": "user", "content": f"{text}\n\n{question}"}],
                "references": [facts[relation][country]],
                "tags": {"words": str(words)},
            }
        )
    return made


if __name__ == "__main__":
    write_rows(rows(), HERE / "long_prompts.jsonl")
