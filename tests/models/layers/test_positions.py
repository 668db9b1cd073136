import numpy as np
import pytest
from paths import GOLDENS

from finetune.models.layers.positions import resize_positions

EXPECTED = np.load(GOLDENS / "positions" / "expected.npz")
CASES = [key.split("_")[1:] for key in EXPECTED if key.startswith("out_")]
PREFIX = np.array([[7.0, -7.0, 0.5], [1e3, 1e-3, 2.0]], np.float32)


def table(old):
    """A grid of the reference file behind two rows that belong to no patch."""
    return np.concatenate([PREFIX, EXPECTED[f"grid_{old}"].reshape(-1, 3)])


@pytest.mark.parametrize(("old", "new", "kind"), CASES)
def test_the_grid_is_resized_as_pytorch_does_and_the_prefix_stays(old, new, kind):
    resized = resize_positions(table(old), 2, int(new), antialias=kind == "antialias")
    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized[:2], PREFIX)
    expected = EXPECTED[f"out_{old}_{new}_{kind}"].reshape(-1, 3)
    np.testing.assert_allclose(resized[2:], expected, rtol=0, atol=2e-6)


def test_the_reference_file_has_both_filters_for_larger_and_smaller_grids():
    sizes = {(old, new, kind) for old in "47" for new in ("6", "3", "16", "5") for kind in ("plain", "antialias")}
    assert {tuple(case) for case in CASES} == sizes


def test_the_filters_differ_where_the_grid_shrinks():
    plain, smooth = (resize_positions(table(7), 2, 3, antialias=antialias) for antialias in (False, True))
    assert np.abs(plain - smooth).max() > 0.01


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("old", [4, 7])
def test_a_grid_of_the_same_size_stays_as_it_is(old, antialias):
    np.testing.assert_array_equal(resize_positions(table(old), 2, old, antialias=antialias), table(old))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("new", [3, 9])
def test_equal_positions_stay_equal(new, antialias):
    same = np.full((16, 3), [0.25, -3.0, 100.0], np.float32)
    resized = resize_positions(same, 0, new, antialias=antialias)
    np.testing.assert_allclose(resized, np.broadcast_to(same[0], (new**2, 3)), rtol=1e-6)
