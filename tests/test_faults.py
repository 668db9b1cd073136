"""The quick form of ``python -m benchmarks.faults``: few trials, on a small network.

Signals in every phase are in ``tests/run/test_continuation.py``.
"""

import pytest

from benchmarks.faults import flips, kills, pairs
from benchmarks.faults.runs import LENET, Workplace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("faults"), LENET)


@pytest.fixture(scope="module")
def whole(place):
    return place.prepare()


def test_a_killed_run_resumes_to_the_same_bits(place, whole):
    assert kills.measure(place, whole, 2)["failures"] == []


def test_no_flipped_bit_is_silent(place, whole):
    assert flips.measure(place, 8)["failures"] == []


def test_of_two_processes_on_one_folder_one_wins(place, whole):
    assert pairs.measure(place, 2)["failures"] == []
