"""The candidates' prompts and probabilities beside the reference's, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from slmflow.answering.ask import AskError
from slmflow.config.evaluation import ParitySettings
from slmflow.evaluation.data.dataset import Dataset
from slmflow.evaluation.generation import Answers
from slmflow.evaluation.parity import Forced, Observation, compare
from slmflow.evaluation.results import Parity
from slmflow.evaluation.subject import Subject


@dataclass
class Beside:
    """What one candidate showed of the first rows. ``observed`` is None where it shows nothing."""

    observed: list[Observation] | None = None
    forced: list[Forced] | None = None
    vocabularies: tuple[int, int] | None = None


def look(
    subject: Subject,
    dataset: Dataset,
    settings: ParitySettings,
    reference: Beside | None,
    folder: Path,
) -> Beside:
    """Observe one candidate; ``reference`` None makes it the reference, whose probabilities go to
    ``folder``."""
    requests = [example.request for example in islice(dataset, settings.rows)]
    save = folder if reference is None else None
    try:
        rows = list(subject.observe(requests, settings.new_tokens, save))
    except AskError:  # another kind of model, or one that refuses such a row
        return Beside()
    observed = [
        Observation(row["prompt"], row["prompt_ids"], row["answer_ids"], row["answer"])
        for row in rows
    ]
    if reference is None or reference.observed is None:
        return Beside(observed)
    return _force(subject, Beside(observed), reference.observed, folder)


def _force(subject: Subject, own: Beside, reference: Sequence[Observation], folder: Path) -> Beside:
    pairs = [(list(one.prompt_ids or ()), list(one.answer_ids or ())) for one in reference]
    found = list(subject.force(pairs, folder))
    if found and "vocabularies" in found[-1]:
        own.vocabularies = tuple(found[-1]["vocabularies"])
    else:
        own.forced = [Forced(**row) for row in found]
    return own


def parity(
    candidate: tuple[Beside, Answers],
    reference: tuple[Beside, Answers],
    dataset: Dataset,
    settings: ParitySettings,
) -> Parity:
    """Where one of the two shows no prompts, their answers to the same rows are compared."""
    questions = [example.question for example in islice(dataset, settings.rows)]
    own, other = candidate[0], reference[0]
    if own.observed is None or other.observed is None:
        told = _texts(reference[1], settings.rows), _texts(candidate[1], settings.rows)
        return compare(*told, None, questions)
    return compare(other.observed, own.observed, own.forced, questions, own.vocabularies)


def _texts(answers: Answers, rows: int) -> list[Observation]:
    return [Observation(None, None, None, reply.text) for _, reply in islice(answers, rows)]
