"""Random histories of units, crashes and repeats against the store and a model of it."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cryoseg_dist.schema.work import ArraySpec, Outcome, Region
from cryoseg_dist.store.ledger import Ledger, Mark
from cryoseg_dist.store.project import Project

N_UNITS, ROWS, WIDTH = 5, 4, 3
N_ROWS = N_UNITS * ROWS - 2  # the last shard is clipped


class StoreMachine(RuleBasedStateMachine):
    """A driver that may be killed after any step: a marked unit's pixels are whole, whatever happened."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.spec = ArraySpec("r/a", (N_ROWS, WIDTH), ("p", "x"), "int32", (2, WIDTH), (ROWS, WIDTH))
        self.open(create=True)
        self.pixels: dict[int, int] = {}
        self.marked: dict[str, Outcome] = {}

    def open(self, create: bool = False) -> None:
        self.project = Project(self.folder, create=create)
        self.project.create(self.spec)
        self.ledger = Ledger(self.project.ledger_path("r"))

    def region(self, unit: int) -> Region:
        return Region("r/a", (unit * ROWS, 0), (min(unit * ROWS + ROWS, N_ROWS), WIDTH))

    def write(self, unit: int, value: int) -> None:
        region = self.region(unit)
        self.project.write(region, np.full(region.shape, value, np.int32))
        self.pixels[unit] = value

    @rule(unit=st.integers(0, N_UNITS - 1), value=st.integers(1, 1000))
    def finish(self, unit: int, value: int) -> None:
        if str(unit) in self.ledger.load():
            return
        self.write(unit, value)
        self.ledger.append(Mark(str(unit), Outcome.DONE, {"value": value}))
        self.marked[str(unit)] = Outcome.DONE

    @rule(unit=st.integers(0, N_UNITS - 1))
    def set_aside(self, unit: int) -> None:
        if str(unit) in self.ledger.load():
            return
        self.ledger.append(Mark(str(unit), Outcome.SET_ASIDE, reason="bad"))
        self.marked[str(unit)] = Outcome.SET_ASIDE

    @rule(unit=st.integers(0, N_UNITS - 1), value=st.integers(1, 1000), cut=st.integers(0, 40))
    def killed_before_or_inside_the_mark(self, unit: int, value: int, cut: int) -> None:
        if str(unit) in self.ledger.load():
            return
        self.write(unit, value)
        path = self.project.ledger_path("r")
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as stream:
            stream.write(b'{"key":"0","outcome":"done","record":{}}'[:cut])
        self.open()

    @rule()
    def killed_and_started_again(self) -> None:
        self.open()

    @precondition(lambda self: self.pixels)
    @rule()
    def creating_again_keeps_the_pixels(self) -> None:
        before = self.project.read(self.project.whole("r/a"))
        self.project.create(self.spec)
        np.testing.assert_array_equal(self.project.read(self.project.whole("r/a")), before)

    @invariant()
    def marks_and_pixels_agree(self) -> None:
        marks = Ledger(self.project.ledger_path("r")).load()
        assert {k: m.outcome for k, m in marks.items()} == self.marked
        got = Project(self.folder).read(self.project.whole("r/a"))
        for unit in range(N_UNITS):
            part = got[unit * ROWS : unit * ROWS + ROWS]
            assert (part == self.pixels.get(unit, 0)).all()
            if self.marked.get(str(unit)) is Outcome.DONE:
                assert (part == marks[str(unit)].record["value"]).all()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.ledger.close()
            shutil.rmtree(self.folder)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
