"""How close to PyTorch's values ours have to be."""

import numpy as np

TOLERANCE = 2e-5  # of the output's largest magnitude


def assert_close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
