"""The training conversations: facts asked in many wordings, small talk, and unknown things."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data import Relation, ask, load_relations, read_yaml

MADE_UP_NAMES = 40  # per pass
TURNS = {1: 12, 2: 4, 3: 2, 4: 2}  # turns of a conversation, and how often relative to the others
FRAMED = 0.3  # share of the questions that come from the frames
DISTURBED = 0.6  # share of the questions that have words dropped and added
NOISE = 0.12  # share of the words of such a question
Message = dict[str, str]
Conversation = list[Message]


@dataclass(frozen=True)
class Item:
    """One thing to learn: an answer and all wordings that ask for it."""

    templates: list[str]
    frames: list[str]
    subject: str
    answer: str


def known_items(relations: list[Relation], chat: dict[str, Any]) -> list[Item]:
    items = [
        Item(relation.templates, relation.frames, subject, answer)
        for relation in relations
        for subject, answer in relation.facts.items()
    ]
    items += [Item([text], [], "", answer) for text, answer in chat["small_talk"].items()]
    unknown = chat["unknown_answer"]
    items += [Item([text], [], "", unknown) for text in chat["unknown_questions"]]
    return items


def made_up_items(
    relations: list[Relation], chat: dict[str, Any], rng: random.Random
) -> list[Item]:
    """Questions about names that do not exist, new ones on every call."""
    asked = [relation for relation in relations if relation.name in chat["unknown_relations"]]
    items = []
    for _ in range(MADE_UP_NAMES):
        relation = rng.choice(asked)
        name = "".join(rng.sample(chat["syllables"], rng.choice([2, 3]))).capitalize()
        items.append(Item(relation.templates, relation.frames, name, chat["unknown_answer"]))
    return items


def disturb(template: str, fillers: list[str], rng: random.Random) -> str:
    """Drop or add a word here and there, but leave the subject alone."""
    words = []
    for word in template.split(" "):
        if rng.random() < NOISE:
            words.append(rng.choice(fillers))
        if "{" in word or rng.random() >= NOISE:
            words.append(word)
    return " ".join(words)


def question(item: Item, chat: dict[str, Any], rng: random.Random) -> str:
    """Vary what people vary: the wording, words around it, its first letter, its last mark."""
    framed = item.frames and rng.random() < FRAMED
    template: str = rng.choice(item.frames if framed else item.templates)
    if item.subject and rng.random() < DISTURBED:
        template = disturb(template, chat["fillers"], rng)
    text = ask(template, item.subject)
    if rng.random() < 0.1:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.1:
        text = text.rstrip("?.")
    if rng.random() < 0.25:
        text = str(rng.choice(chat["wrappers"])).format(q=text)
    return text


def conversation(items: list[Item], chat: dict[str, Any], rng: random.Random) -> Conversation:
    messages = []
    if rng.random() < 0.2:
        sentences = rng.sample(chat["system_messages"], rng.choice([1, 1, 2, 3, 6]))
        messages.append({"role": "system", "content": " ".join(sentences)})
    for item in items:
        messages.append({"role": "user", "content": question(item, chat, rng)})
        messages.append({"role": "assistant", "content": item.answer})
    return messages


def training_conversations(passes: int, seed: int) -> Iterator[Conversation]:
    """Conversations of one to four turns that ask every item once per pass."""
    rng = random.Random(seed)
    chat = read_yaml("chat.yaml")
    relations = load_relations()
    known = known_items(relations, chat)
    for _ in range(passes):
        items = known + made_up_items(relations, chat, rng)
        rng.shuffle(items)
        start = 0
        while start < len(items):
            turns = rng.choices(list(TURNS), weights=list(TURNS.values()))[0]
            yield conversation(items[start : start + turns], chat, rng)
            start += turns
