"""Quality of a shuffle, computed from the orders of several epochs."""

from __future__ import annotations

import itertools

import numpy as np


def shuffle_quality(orders: list[np.ndarray]) -> tuple[float, float]:
    """Mean distance that a sample moves between epochs, as a share of the epoch: 1/3 for independent permutations;
    and how often the neighbour of the epoch before is again within 100 places: next to never.
    """
    places = [np.argsort(order) for order in orders]
    moved = [np.abs(b - a).mean() / len(a) for a, b in itertools.pairwise(places)]
    together = [(np.abs(np.diff(places[i + 1][orders[i]])) <= 100).mean() for i in range(len(orders) - 1)]
    return float(np.mean(moved)), float(np.mean(together))
