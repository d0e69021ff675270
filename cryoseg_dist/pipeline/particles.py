"""From picks to particles: extraction, sorting and what every later stage needs to know of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby

import numpy as np
import pandas as pd

from cryoseg_dist.errors import StageFailedError
from cryoseg_dist.pipeline.micrographs import CtfFits, Micrographs, Picks, SetAside, require_diameter
from cryoseg_dist.pipeline.session import Session
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import ImageFile, Read, Region
from cryoseg_dist.stages import extract
from cryoseg_dist.stages.refine_expectation import CTF_COLUMNS

FEWEST_PARTICLES = 20
# Columns of the CTF's envelope, and what their absence means.
ENVELOPE = {"ctf_scale": 1.0, "ctf_b_factor": 0.0}


@dataclass(frozen=True)
class Particles:
    """Particle images, wherever they are, and their table.

    Attributes
    ----------
    run : str
        What made them, for the run ids of later stages.
    table : DataFrame
        One row a particle, with the columns of ``schema.columns.PARTICLES``.
    optics : Optics
        Of the images.
    size : int
        Box in pixels.
    diameter : float
        A.
    array : str, optional
        The store's array; the row's ``store_index`` is the index in it.
    project : str, optional
        Folder of the project that the array is in, if not this one.
    sources : tuple of ImageFile, optional
        One section a row, where the images are in foreign stacks.
    set_aside : tuple of SetAside
    optics_groups : DataFrame, optional
        The optics table that came with the particles.
    groups : Mapping of int to Optics, optional
        By the table's ``optics_group``, of one pixel size; ``optics`` holds for all when not given.
    """

    run: str
    table: pd.DataFrame
    optics: Optics
    size: int
    diameter: float
    array: str | None = None
    sources: tuple[ImageFile, ...] | None = None
    set_aside: tuple[SetAside, ...] = ()
    optics_groups: pd.DataFrame | None = None
    groups: Mapping[int, Optics] | None = None
    project: str | None = None

    def __len__(self) -> int:
        return len(self.table)

    def subset(self, rows: np.ndarray, run: str) -> "Particles":
        """Some of the particles."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        sources = None if self.sources is None else tuple(self.sources[i] for i in index)
        return replace(self, run=run, table=self.table.iloc[index].reset_index(drop=True), sources=sources)

    @property
    def microscope(self) -> Optics | tuple[Optics, ...]:
        """One optics, or those of the groups in the order of their index in :meth:`transfer`."""
        return self.optics if self.groups is None else tuple(self.groups.values())

    def transfer(self, rows: np.ndarray) -> np.ndarray:
        """What :class:`~cryoseg_dist.kernels.microscope.Microscope` needs to know of some rows, float32, shape (n, 4, 5 or 7)."""
        # Column by column: picking rows first keeps the cost that of the rows, not of the table.
        values = [self.table[name].to_numpy()[rows] for name in CTF_COLUMNS]
        if self.groups is not None:
            place = {number: i for i, number in enumerate(self.groups)}
            values.append([place[int(number)] for number in self.table["optics_group"].to_numpy()[rows]])
        elif self.has_envelopes:
            values.append(np.zeros(len(rows)))
        if self.has_envelopes:
            for name, neutral in ENVELOPE.items():
                values.append(self.table[name].to_numpy()[rows] if name in self.table else np.full(len(rows), neutral))
        return np.column_stack(values).astype(np.float32)

    @cached_property
    def has_envelopes(self) -> bool:
        """Whether some image's CTF is scaled or fades."""
        return any((self.table[name] != neutral).any() for name, neutral in ENVELOPE.items() if name in self.table)

    def read_of(self, rows: np.ndarray) -> tuple[Read, np.ndarray | None]:
        """How to read some rows, and which of the images read they are (None: all, in order).

        Rows of the store are read as the one stretch that holds them, for chunks are read whole anyway.
        """
        if self.sources is not None:
            return joined([self.sources[i] for i in rows]), None
        if self.array is None:
            raise ValueError("particles without images")
        index = self.table["store_index"].to_numpy()[rows]
        first, last = int(index.min()), int(index.max()) + 1
        region = Region(self.array, (first, 0, 0), (last, self.size, self.size), self.project)
        return region, index - first


def joined(sources: Sequence[ImageFile]) -> tuple[ImageFile, ...]:
    """Single sections of the same stack, one after another, as one read."""
    out: list[ImageFile] = []
    for path, group in groupby(sources, key=lambda source: source.path):
        sections = chain.from_iterable(source.sections or () for source in group)
        out.append(ImageFile(path, tuple(sections)))
    return tuple(out)


def run_extract(session: Session, micrographs: Micrographs, fits: CtfFits, picks: Picks) -> Particles:
    """Cut the windows of all picks and sort out those that look like none of the rest."""
    s = session.settings
    diameter = require_diameter(session)
    inside = extract.usable_centres(picks.x, picks.y, micrographs.shape)
    index, x, y, score = (v[inside] for v in (picks.index, picks.x, picks.y, picks.score))
    if len(index) < FEWEST_PARTICLES:
        raise StageFailedError(
            f"extract: expected at least {FEWEST_PARTICLES} particles, got {len(index)}. "
            "Check the diameter and data.protein_dark, lower pick.threshold, or train the network on this specimen."
        )
    where = extract.window_geometry(s.extract, s.data.pixel_size, diameter)
    config = {
        "extract": s.extract.model_dump(exclude={"outlier"}),
        "threshold": picks.threshold,
        "diameter": diameter,
        "dark": s.data.protein_dark,
    }
    # The runs before this one stay the same while their list of micrographs grows, or some of them are tried again.
    counts = f"{len(micrographs.paths)}, {len(fits.accepted)} accepted, {len(index)} particles"
    upstream = {"pick": picks.run, "ctf": fits.run, "micrographs": counts}
    run = session.run_id("extract", config, upstream)
    shard = extract.shard_size(index, micrographs.shape)
    specs = extract.array_specs(run, len(index), where, shard)
    units = extract.plan(run, f"{micrographs.run}/micrographs", micrographs.shape, index, x, y, where, shard)
    stage = extract.ExtractStage(s.extract, where, s.data.protein_dark)
    session.map(stage, run, specs, units, need_all=True)
    statistics = session.project.read(session.project.whole(f"{run}/statistics"))[: len(index)]
    keep = extract.sort_particles(statistics, s.extract)
    origin_x, origin_y = extract.residual_origins(x, y, s.data.pixel_size)
    names = np.array([str(p) for p in micrographs.paths])
    records = [fits.records[int(i)] for i in index]
    table = pd.DataFrame(
        {
            "micrograph_name": names[index],
            "coordinate_x": x,
            "coordinate_y": y,
            "autopick_figure_of_merit": score,
            "optics_group": 1,
            **{c: [float(r[c]) for r in records] for c in CTF_COLUMNS},
            "origin_x": origin_x,
            "origin_y": origin_y,
            "store_index": np.arange(len(index)),
        }
    )
    optics = replace(s.data.optics, pixel_size=where.pixel_size)
    every = Particles(run, table, optics, where.size, diameter, array=f"{run}/images")
    n_out = int((~keep).sum())
    set_aside = (SetAside("extract", f"{n_out} particles", "statistics far from those of the rest"),) if n_out else ()
    return replace(every.subset(keep, f"{run}:{s.extract.outlier:g}"), set_aside=set_aside)
