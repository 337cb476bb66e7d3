"""How far the figures of an evaluation can be trusted, and what a difference between two is worth.

Rows are taken as a random draw from all the questions that could be asked.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from slmflow.evaluation.metrics import is_right_wrong
from slmflow.evaluation.results import Difference, Figure, Verdict

Array = NDArray[np.float64]
Interval = tuple[float, float]

BATCH_VALUES = 1_000_000  # drawn at once by the bootstrap: some 16 MB
ROUNDING = 1e-12  # how far from 0 rounding may put a bound that is 0


def mean_interval(values: ArrayLike, confidence: float, resamples: int, seed: int) -> Figure:
    """The mean of one score a row, with its confidence interval. At least one row.

    The bootstrap's percentile interval (Efron and Tibshirani 1993, chapter 13), which claims too
    much where rows are few or alike: it has no width where all are equal. So

    - scores of right or wrong, 1 or 0, get Wilson's interval where that is wider (Brown, Cai and
      DasGupta 2001, doi:10.1214/ss/1009213286);
    - scores between 0 and 1 have it widened by the rows that were not met (``_with_unseen``);
    - values without those bounds have the bootstrap's alone.
    """
    scores = _rows(values)
    mean = float(scores.mean())
    interval = _bootstrap(scores, confidence, resamples, seed)
    if is_right_wrong(scores):
        interval = max(interval, _wilson(scores, confidence), key=_width)
    elif _within(scores, 0, 1):
        interval = _with_unseen(interval, scores, confidence, 0, 1)
    return _figure(mean, interval, len(scores))


def difference(
    candidate: ArrayLike,
    reference: ArrayLike,
    *,
    confidence: float,
    resamples: int,
    seed: int,
    matters: float,
) -> Difference:
    """Candidate minus reference, paired: one score a row, the same rows in the same order.

    The interval is the paired bootstrap's, widened as that of ``mean_interval``. Where all scores
    are right or wrong there is McNemar's exact test besides. Better or worse is said only where
    the interval leaves out 0 and the test, where there is one, agrees (p < 1 - confidence). If
    not, too few rows is said where half the interval is more than ``matters``, the size of a
    difference that one would act on. More is taken to be better.
    """
    ours, theirs = _rows(candidate), _rows(reference)
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} rows of the candidate, {len(theirs)} of the reference")
    if matters <= 0:
        raise ValueError(f"matters={matters}: a difference that matters is more than 0")
    changes = ours - theirs
    interval = _bootstrap(changes, confidence, resamples, seed)
    if _within(changes, -1, 1):
        interval = _with_unseen(interval, changes, confidence, -1, 1)
    change = _figure(float(changes.mean()), interval, len(changes))
    right_wrong = is_right_wrong(ours) and is_right_wrong(theirs)
    p_value = mcnemar(changes) if right_wrong else None
    verdict = _verdict(change, p_value, confidence, matters)
    few = verdict is Verdict.too_few_rows
    return Difference(change, verdict, p_value, _rows_needed(change, matters) if few else None)


def mcnemar(changes: ArrayLike) -> float:
    """Two-sided p of McNemar's exact test: whether the rows that one of two got right and the
    other wrong (1 and -1) could be a fair coin's. 1 without such rows.

    The binomial test over those rows: Fagerland, Lydersen and Laake 2013,
    doi:10.1186/1471-2288-13-91, "exact conditional test".
    """
    rows = np.asarray(changes)
    gained, lost = int((rows > 0).sum()), int((rows < 0).sum())
    if not gained + lost:
        return 1.0
    return float(stats.binomtest(gained, gained + lost).pvalue)


def ratio(candidate: Sequence[float], reference: Sequence[float]) -> Figure:
    """Candidate over reference, paired by round: the geometric mean of the rounds' ratios and
    their extremes. Values are more than 0."""
    paired = candidate and len(candidate) == len(reference)
    if not paired or min(*candidate, *reference) <= 0:
        raise ValueError(f"no ratio of {candidate} over {reference}")
    ratios = [ours / theirs for ours, theirs in zip(candidate, reference, strict=True)]
    low, high = min(ratios), max(ratios)
    mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
    return Figure(min(max(mean, low), high), low, high)


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99, between samples by linear interpolation. At least one sample."""
    if not samples:
        raise ValueError("no quantiles without samples")
    middle, most, nearly_all = np.quantile(np.asarray(samples, float), (0.5, 0.9, 0.99))
    return {"p50": float(middle), "p90": float(most), "p99": float(nearly_all)}


def _rows(values: ArrayLike) -> Array:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or not len(rows) or not np.isfinite(rows).all():
        raise ValueError("one finite value a row is needed, and at least one row")
    return rows


def _within(values: Array, lowest: float, highest: float) -> bool:
    return bool(values.min() >= lowest and values.max() <= highest)


def _bootstrap(values: Array, confidence: float, resamples: int, seed: int) -> Interval:
    if np.ptp(values) == 0:  # also a single row, which scipy refuses
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, BATCH_VALUES // len(values)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _wilson(values: Array, confidence: float) -> Interval:
    found = stats.binomtest(int(values.sum()), len(values)).proportion_ci(confidence, "wilson")
    return float(found.low), float(found.high)


def _with_unseen(
    interval: Interval, values: Array, confidence: float, lowest: float, highest: float
) -> Interval:
    """At least as wide as the rows that were not met could make it.

    In n rows without a case, up to 1 - alpha^(1/n) of all rows may be one: the rule of three
    (Hanley and Lippman-Hand 1983, doi:10.1001/jama.1983.03330370053031; 3/n at 95%). Those rows
    may lie at either end of the scale. It counts where rows are few or nearly equal; elsewhere
    the bootstrap is wider.
    """
    unseen = 1 - (1 - confidence) ** (1 / len(values))
    mean = float(values.mean())
    low, high = interval
    return (
        min(low, mean + unseen * (lowest - mean)),
        max(high, mean + unseen * (highest - mean)),
    )


def _width(interval: Interval) -> float:
    return interval[1] - interval[0]


def _figure(mean: float, interval: Interval, rows: int) -> Figure:
    return Figure(mean, min(interval[0], mean), max(interval[1], mean), rows)


def _verdict(change: Figure, p_value: float | None, confidence: float, matters: float) -> Verdict:
    shown = p_value is None or p_value < 1 - confidence
    if shown and change.low > ROUNDING:
        return Verdict.better
    if shown and change.high < -ROUNDING:
        return Verdict.worse
    if _width((change.low, change.high)) / 2 > matters:
        return Verdict.too_few_rows
    return Verdict.no_difference_shown


def _rows_needed(change: Figure, matters: float) -> int:
    """With which half the interval would be about ``matters``: its width falls with the root of
    the rows. Rounded up to two digits."""
    rows = change.rows or 1
    half = _width((change.low, change.high)) / 2
    needed = max(math.ceil(rows * (half / matters) ** 2), rows + 1)
    step: int = 10 ** max(len(str(needed)) - 2, 0)
    return math.ceil(needed / step) * step
