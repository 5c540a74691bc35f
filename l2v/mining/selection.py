"""Which candidates become negatives."""

import numpy as np
from numpy.typing import NDArray

from l2v.mining.settings import Mining


def judge(
    scores: NDArray[np.float32], positive: float, mining: Mining, dropped: dict[str, int] | None = None
) -> NDArray[np.int64]:
    """Ranks that may become negatives of a pair.

    Args:
        scores: (ranks,) of the candidates, highest first; -inf where there is none.
        positive: the positive's score.
        mining: the thresholds and the ranks to look at.
        dropped: rule -> count, to which what each rule drops is added; a candidate counts for the first that drops it.
    """
    keep = scores > -np.inf
    keep[: mining.range_min] = False
    limits: dict[str, float] = {}
    if mining.percentage_margin is not None:  # of the score's size: a limit is below a negative score as well
        limits["percentage_margin"] = positive - (1 - mining.percentage_margin) * abs(positive)
    if mining.absolute_margin is not None:
        limits["absolute_margin"] = positive - mining.absolute_margin
    for rule, limit in limits.items():
        above = keep & (scores > limit)
        keep &= ~above
        if dropped is not None:
            dropped[rule] = dropped.get(rule, 0) + int(above.sum())
    return np.flatnonzero(keep)


def pick(ranks: NDArray[np.int64], mining: Mining, seeds: list[int]) -> NDArray[np.int64]:
    """At most ``num_negatives`` of the ranks, in their order. Random ones depend on the seeds and nothing else."""
    if mining.sampling == "random" and len(ranks) > mining.num_negatives:
        generator = np.random.default_rng([mining.seed, *seeds])
        ranks = np.sort(generator.choice(ranks, mining.num_negatives, replace=False))
    return ranks[: mining.num_negatives]
