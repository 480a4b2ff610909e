"""How sure a figure is: the bootstrap over a text's articles."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
LEVEL = 0.95
Sums = npt.NDArray[np.float64]  # of one quantity, in every resample
Interval = tuple[float, float]


def interval(
    quantities: list[npt.NDArray[np.generic]],
    figure: Callable[..., Sums],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Return the interval that holds a figure with 95 % confidence.

    Articles are drawn with replacement, as many as there are; the figure is taken of the sums over
    each draw, and the middle 95 % of all draws' figures are the interval.

    Args:
        quantities: What the figure is made of, by article, each of shape ``(articles,)``: nats and
            words, say. The same articles are drawn of all of them, so differences are paired.
        figure: The figure as a function of the quantities' sums, arrays of shape ``(draws,)``.
        resamples: Number of draws.
        seed: Decides the draws.

    Returns:
        Its ends; None where there are fewer than two articles.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile
        intervals).
    """
    articles = len(quantities[0])
    if articles < 2:
        return None
    generator = np.random.default_rng(seed)
    table = np.stack([np.asarray(quantity, np.float64) for quantity in quantities], axis=1)
    sums = np.empty((resamples, len(quantities)))
    for draw in range(resamples):  # one at a time: a corpus may have a million articles
        sums[draw] = table[generator.integers(articles, size=articles)].sum(axis=0)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(figure(*sums.T), [tail, 1 - tail])
    return float(low), float(high)
