from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.training.sources import LabelledSet, training_source
from cryoseg_dist.training.synthetic import synthetic_sample


@pytest.fixture
def labelled(tmp_path: Path) -> LabelledSet:
    (tmp_path / "labels").mkdir()
    path = tmp_path / "m.mrc"
    with mrcfile.new(path) as handle:
        handle.set_data(np.random.default_rng(0).normal(size=(400, 400)).astype(np.float32))
    pd.DataFrame({"x_px": [200.0], "y_px": [150.0]}).to_csv(tmp_path / "labels" / "m.csv", index=False)
    return LabelledSet((path,), tmp_path / "labels", 2.0, 128.0)


def test_without_micrographs_the_patches_are_synthetic() -> None:
    source, data = training_source([], synthetic_share=0.3)
    a, b = source(np.random.default_rng(4), 64), synthetic_sample(np.random.default_rng(4), 64)
    np.testing.assert_array_equal(a.image, b.image)
    assert data == "synthetic"


def test_the_data_are_known_by_their_labels_and_share(labelled: LabelledSet) -> None:
    _, first = training_source([labelled], synthetic_share=0.25)
    _, same = training_source([labelled], synthetic_share=0.25)
    _, share = training_source([labelled], synthetic_share=0.5)
    pd.DataFrame({"x_px": [201.0], "y_px": [150.0]}).to_csv(labelled.labels / "m.csv", index=False)
    _, moved = training_source([labelled], synthetic_share=0.25)
    assert first == same
    assert len({first, share, moved}) == 3


def test_real_patches_alone_and_an_impossible_share(labelled: LabelledSet) -> None:
    source, _ = training_source([labelled], synthetic_share=0.0)
    classes = {int(v) for i in range(6) for v in np.unique(source(np.random.default_rng(i), 64).labels)}
    assert classes == {0, 1}
    with pytest.raises(BadInputError, match=r"between 0 and 1, got 1\.5"):
        training_source([labelled], synthetic_share=1.5)
