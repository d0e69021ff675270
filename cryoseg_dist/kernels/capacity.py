"""Assignment of many to a few of limited capacity, by prices."""

import numpy as np

# Least rise of a price: it breaks ties, so that the auction ends.
LEAST_RISE = 1e-3


def capacity_prices(values: np.ndarray, capacity: int) -> np.ndarray:
    """Lowest prices found at which nobody's best choice is overfull: the auction algorithm (Bertsekas 1988), by the seller.

    The price of an overfull choice rises until those who lose least by going elsewhere have left.

    Parameters
    ----------
    values : ndarray, float, shape (n, k)
        What each choice is worth to each of ``n``.
    capacity : int
        Of each choice; ``capacity * k`` is at least ``n``.

    Returns
    -------
    ndarray, float64, shape (k,)
        Prices from 0 up; the best choice of each is that of largest value less price.

    Raises
    ------
    ValueError
        The capacities do not hold all.
    """
    n, k = values.shape
    if capacity * k < n:
        raise ValueError(f"expected capacities that hold {n}, got {k} of {capacity}")
    worth = values.astype(np.float64)
    prices = np.zeros(k)
    best = worth.argmax(axis=1)
    counts = np.bincount(best, minlength=k)
    while counts.max() > capacity:
        full = int(counts.argmax())
        members = np.flatnonzero(best == full)
        others = worth[members].copy()
        others[:, full] = -np.inf
        loss = np.sort(worth[members, full] - others.max(axis=1))
        rise = loss[len(members) - capacity - 1] + LEAST_RISE
        prices[full] += rise
        worth[:, full] -= rise
        best[members] = worth[members].argmax(axis=1)
        counts = np.bincount(best, minlength=k)
    return prices
