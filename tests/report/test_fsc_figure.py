"""What the FSC figure marks."""

import numpy as np

from cryoseg_dist.report.data_fsc import FscView
from cryoseg_dist.report.figures_curves import fsc_figure


def test_a_crossing_is_marked():
    figure = fsc_figure(FscView({"masked": np.linspace(1, -0.1, 33)}, 64, 3.75, 9.5, 14.0))
    assert "9.50 Å" in figure
    assert "14.00 Å" in figure


def test_a_curve_that_ends_above_the_threshold_has_no_crossing_to_mark():
    figure = fsc_figure(FscView({"masked": np.linspace(1, 0.3, 33)}, 64, 3.75, 7.5, 10.5))
    assert "7.50 Å" not in figure
    assert "10.50 Å" in figure
