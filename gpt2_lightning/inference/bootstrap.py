"""How sure a figure is: the bootstrap over a text's articles."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000  # of a text of up to so many articles; fewer of a longer one
FEWEST_RESAMPLES = 1_000
LEVEL = 0.95
Sums = npt.NDArray[np.float64]  # of one quantity, in every resample
Interval = tuple[float, float]


class Resamples:
    """Articles drawn with replacement, as many as there are, again and again.

    The middle 95 % of a figure over all draws are its interval. All figures are taken of the same
    draws, so differences are paired.

    Args:
        quantities: What figures are made of, by article, each of shape ``(articles,)``: nats and
            words, say.
        count: Number of draws; null takes 10,000, and above 10,000 articles fewer, down to 1,000.
        seed: Decides the draws.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile
        intervals).
    """

    def __init__(
        self,
        quantities: Mapping[str, npt.NDArray[np.generic]],
        *,
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        table = np.stack([np.asarray(one, np.float64) for one in quantities.values()], axis=1)
        articles = len(table)
        count = count or max(FEWEST_RESAMPLES, min(RESAMPLES, RESAMPLES**2 // max(articles, 1)))
        self.enough = articles > 1
        generator = np.random.default_rng(seed)
        sums = np.empty((count if self.enough else 0, len(quantities)))
        for draw in sums:  # one at a time: a corpus may have a million articles
            draw[:] = table[generator.integers(articles, size=articles)].sum(axis=0)
        self.sums = dict(zip(quantities, sums.T, strict=True))

    def interval(self, figure: Callable[..., Sums], *quantities: str) -> Interval | None:
        """Return the ends of a figure's interval.

        Args:
            figure: The figure as a function of sums, arrays of shape ``(draws,)``.
            quantities: Names of the sums it takes.

        Returns:
            The ends; None where there are fewer than two articles, or a draw has no figure.
        """
        if not self.enough:
            return None
        tail = (1 - LEVEL) / 2
        with np.errstate(all="ignore"):  # a draw of empty articles has no figure
            found = figure(*(self.sums[name] for name in quantities))
            low, high = np.quantile(found, [tail, 1 - tail])
        return (float(low), float(high)) if np.isfinite([low, high]).all() else None
