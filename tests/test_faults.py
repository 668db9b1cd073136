"""The quick form of ``python -m benchmarks.faults``: few trials, on a small network.

Signals in every phase are in ``tests/run/test_continuation.py``.
"""

import pytest

from benchmarks.faults import flips, kills, pairs
from benchmarks.faults.runs import LENET, Workplace

pytestmark = pytest.mark.slow


@pytest.mark.long  # its parts are tested where they belong
def test_kills_flipped_bits_and_two_at_once_lose_nothing(tmp_path):
    place = Workplace(tmp_path, LENET)
    whole = place.prepare()
    assert kills.measure(place, whole, 2)["failures"] == []
    assert flips.measure(place, 8)["failures"] == []
    assert pairs.measure(place, 2)["failures"] == []
