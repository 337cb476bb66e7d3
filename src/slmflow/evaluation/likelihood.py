"""How likely a model finds the references: their log-likelihood after the question."""

from itertools import islice

import numpy as np

from slmflow.answering.ask import AskError
from slmflow.config.evaluation import Score
from slmflow.evaluation.data.dataset import Dataset
from slmflow.evaluation.results import Figure
from slmflow.evaluation.scoring import Array
from slmflow.evaluation.subject import Subject

METRIC = "reference_log_likelihood"
"""Of a row: nats a token of its first reference."""


def measure(subject: Subject, dataset: Dataset, rows: int) -> Array | None:
    """Nats and tokens, ``[len(dataset), 2]``; NaN for rows without a reference and those behind
    ``rows``. None where no row has one, or the candidate does not show its logits."""
    asked = [
        (index, example.request, example.references[0])
        for index, example in enumerate(islice(dataset, rows))
        if example.references and example.references[0]
    ]
    if not asked:
        return None
    found = np.full((len(dataset), 2), np.nan)
    try:
        told = subject.likelihood([(request, reference) for _, request, reference in asked])
        for (index, _, _), (nats, tokens) in zip(asked, told, strict=True):
            found[index] = nats, tokens
    except AskError:
        return None
    return found


def perplexity(measured: Array, settings: Score) -> Figure | None:
    """``exp(-nats / tokens)`` over all tokens of all rows (Jelinek et al. 1977), with the
    percentile interval of a bootstrap over the rows."""
    given = measured[np.isfinite(measured[:, 0])]
    if not len(given):
        return None
    value = _perplexity(given[:, 0], given[:, 1])
    if len(given) < 2:
        return None  # no interval, no figure
    from scipy.stats import bootstrap  # late: it takes most of a second to import

    interval = bootstrap(
        (given[:, 0], given[:, 1]),
        _perplexity,
        paired=True,
        vectorized=True,
        confidence_level=settings.confidence,
        n_resamples=settings.resamples,
        method="percentile",
        rng=np.random.default_rng(settings.seed),
    ).confidence_interval
    return Figure(float(value), float(interval.low), float(interval.high), rows=len(given))


def _perplexity(nats: Array, tokens: Array, axis: int = -1) -> Array:
    return np.asarray(np.exp(-nats.sum(axis=axis) / tokens.sum(axis=axis)))


def of_rows(measured: Array) -> Array:
    return np.asarray(measured[:, 0] / measured[:, 1])
