"""The second pass of a search: poses that split the cells which the first pass found, of many particles at once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cryoseg_dist.kernels.matching import Observations, log_likelihood, shift_phases
from cryoseg_dist.kernels.slices import project_pixels


def first_distinct(values: Tensor, count: Tensor, most: int) -> Tensor:
    """Distinct values of each row in order of first appearance.

    Parameters
    ----------
    values : Tensor, int64, shape (b, k)
        Not negative.
    count : Tensor, int64, shape (b,)
        Values of each row that count.
    most : int
        Distinct values kept a row.

    Returns
    -------
    Tensor, int64, shape (b, at most ``most``)
        -1 beyond the last.
    """
    b, k = values.shape
    ordered, place = values.sort(dim=1, stable=True)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.zeros_like(starts).scatter_(1, place, starts)
    first &= torch.arange(k, device=values.device) < count[:, None]
    rank = first.cumsum(dim=1) - 1
    kept = first & (rank < most)
    out = torch.full((b, min(most, k) + 1), -1, dtype=torch.int64, device=values.device)
    # What is not kept goes to one more column, which is dropped.
    out.scatter_(1, torch.where(kept, rank, out.shape[1] - 1), values)
    return out[:, :-1]


class FineSlices:
    """Slices of a map at the rotations that split the cells of a grid; particles that meet in a cell share them.

    Parameters
    ----------
    volume : Tensor, complex64
        From ``slices.prepare_volume``.
    ky, kx : Tensor, int64, shape (p,)
    grid : Tensor, shape (g, 3, 3)
    children : Tensor, shape (c, 3, 3)
    kept_bytes : int
        Slices that are kept for other particles.
    """

    def __init__(self, volume: Tensor, ky: Tensor, kx: Tensor, grid: Tensor, children: Tensor, kept_bytes: int) -> None:
        self._volume, self._ky, self._kx, self._grid, self._children = volume, ky, kx, grid, children
        most = min(kept_bytes // (8 * len(children) * len(ky)), len(grid))
        self._kept = torch.empty((most, len(children), len(ky)), dtype=torch.complex64, device=volume.device)
        self._place = torch.full((len(grid),), -1, dtype=torch.int64, device=volume.device)
        self._used = 0

    def of(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotations (b, c r, 3, 3) of the cells (b, r) of ``b`` particles, slices (n, p), and which of them (b, c r) they have."""
        rotations = (self._children @ self._grid[cells][..., None, :, :]).flatten(1, 2)
        distinct = cells.unique()
        if len(distinct) > len(self._kept):
            slices = project_pixels(self._volume, rotations.flatten(0, 1), self._ky, self._kx)
            return rotations, slices, numbered(rotations)
        new = distinct[self._place[distinct] < 0]
        if self._used + len(new) > len(self._kept):
            self._place.fill_(-1)
            self._used, new = 0, distinct
        if len(new):
            place = torch.arange(self._used, self._used + len(new), device=new.device)
            made = (self._children @ self._grid[new][:, None]).flatten(0, 1)
            made = project_pixels(self._volume, made, self._ky, self._kx)
            self._kept[self._used : self._used + len(new)] = made.unflatten(0, (len(new), -1))
            self._place[new] = place
            self._used += len(new)
        n = len(self._children)
        rows = self._place[cells][..., None] * n + torch.arange(n, device=cells.device)
        return rotations, self._kept.flatten(0, 1), rows.flatten(1)


def numbered(rotations: Tensor) -> Tensor:
    """Numbers (b, r) of the rotations (b, r, 3, 3) of ``b`` particles, counted through."""
    b, r = rotations.shape[:2]
    return torch.arange(b * r, device=rotations.device).view(b, r)


def _alike(size: Tensor, room: int) -> Iterator[Tensor]:
    """Rows in groups of like size, the greatest first, that together stay within ``room``; one at least."""
    order = torch.argsort(size, descending=True, stable=True)
    first = 0
    while first < len(order):
        n = max(1, room // max(1, int(size[order[first]])))
        yield order[first : first + n]
        first += n


def split_cells(
    observations: Observations,
    cells: Tensor,
    shifts: Tensor,
    slices_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    log_prior: Callable[[Tensor, Tensor], Tensor],
    ky: Tensor,
    kx: Tensor,
    *,
    size: int,
    shift_step_px: float,
    keep: int,
    any_scale: bool,
    room_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score each particle at the poses that split its cells of rotations and of shifts.

    Parameters
    ----------
    observations : Observations
        Of ``b`` images at ``p`` pixels.
    cells : Tensor, int64, shape (b, r)
        Of rotations, -1 beyond the last.
    shifts : Tensor, float32, shape (b, t, 2)
        Centres of cells of shifts in pixels, NaN beyond the last.
    slices_of : Callable
        Rotations (n, c r, 3, 3), slices (m, p) and which of them (n, c r), given rows (n,) and their cells (n, r).
    log_prior : Callable
        Of shifts (n, t, 2) of rows (n,).
    size : int
        Image extent.
    shift_step_px : float
        Extent of a cell of shifts.
    keep : int
        Poses kept a particle.
    any_scale : bool
    room_bytes : int
        Bounds the slices held at once.

    Returns
    -------
    rotations, shifts, scores : Tensor, shapes (b, keep, 3, 3), (b, keep, 2) and (b, keep)
        Best first; identity, zero and ``-inf`` where a particle has fewer poses.
    """
    b, device = cells.shape[0], cells.device
    quarter = 0.25 * shift_step_px * torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]], device=device)
    n_cells, n_shifts = (cells >= 0).sum(dim=1), torch.isfinite(shifts[..., 0]).sum(dim=1)
    sizes = torch.stack((n_cells, n_shifts), dim=1).cpu()
    out_r = torch.eye(3, device=device).repeat(b, keep, 1, 1)
    out_t = torch.zeros((b, keep, 2), device=device)
    out_s = torch.full((b, keep), -torch.inf, device=device)
    # A cell has eight rotations of eight bytes a pixel.
    for group in _alike(sizes[:, 0], room_bytes // (64 * len(ky))):
        r, t = sizes[group].amax(dim=0).tolist()
        rows = group.to(device)
        chosen, centres = cells[rows, :r], shifts[rows, :t]
        rotations, slices, index = slices_of(rows, chosen.clamp(min=0))
        fine = (torch.nan_to_num(centres)[:, :, None] + quarter).flatten(1, 2)
        phases = shift_phases(fine, ky, kx, size)
        score = log_likelihood(observations[rows], phases, slices, index, any_scale=any_scale)
        score += log_prior(rows, fine)[..., None]
        absent = torch.isnan(centres[..., 0]).repeat_interleave(4, dim=1)[:, :, None]
        absent = absent | (chosen < 0).repeat_interleave(rotations.shape[1] // r, dim=1)[:, None, :]
        score.masked_fill_(absent, -torch.inf)
        top = score.flatten(1).topk(min(keep, score[0].numel()), dim=1)
        j, n_rotations = top.values.shape[1], rotations.shape[1]
        at = torch.arange(len(rows), device=device)[:, None]
        found = torch.isfinite(top.values)[..., None]
        out_r[rows, :j] = torch.where(found[..., None], rotations[at, top.indices % n_rotations], out_r[rows, :j])
        out_t[rows, :j] = torch.where(found, fine[at, top.indices // n_rotations], out_t[rows, :j])
        out_s[rows, :j] = top.values
    return out_r, out_t, out_s
