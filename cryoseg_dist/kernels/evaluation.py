"""How well picked centres agree with known ones."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree


@dataclass(frozen=True, slots=True)
class PickingScore:
    """Agreement of picks with the truth.

    Attributes
    ----------
    n_picks, n_truth, n_matched : int
    rms_error : float
        Of the matched centres, in the unit of the coordinates; NaN without matches.
    """

    n_picks: int
    n_truth: int
    n_matched: int
    rms_error: float

    @property
    def recall(self) -> float:
        """Share of the truth that was found."""
        return self.n_matched / self.n_truth if self.n_truth else float("nan")

    @property
    def precision(self) -> float:
        """Share of the picks that are true."""
        return self.n_matched / self.n_picks if self.n_picks else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision."""
        total = self.n_picks + self.n_truth
        return 2.0 * self.n_matched / total if total else float("nan")


def match_centres(picks: np.ndarray, truth: np.ndarray, radius: float) -> PickingScore:
    """Match one to one, nearest pairs first, whatever the scores; a second pick on a particle is wrong.

    Parameters
    ----------
    picks, truth : ndarray, shape (n, 2), (m, 2)
    radius : float
        Longest distance of a match.
    """
    if len(picks) == 0 or len(truth) == 0:
        return PickingScore(len(picks), len(truth), 0, float("nan"))
    pairs = cKDTree(picks).sparse_distance_matrix(cKDTree(truth), radius, output_type="coo_matrix")
    order = np.argsort(pairs.data, kind="stable")
    used_pick, used_truth = np.zeros(len(picks), bool), np.zeros(len(truth), bool)
    squares = []
    for i, j, d in zip(pairs.row[order], pairs.col[order], pairs.data[order], strict=True):
        if not used_pick[i] and not used_truth[j]:
            used_pick[i] = used_truth[j] = True
            squares.append(d * d)
    rms = float(np.sqrt(np.mean(squares))) if squares else float("nan")
    return PickingScore(len(picks), len(truth), len(squares), rms)
