import os
import subprocess
import sys

import pytest

from finetune.data.sources.labels import labels_from_name_lists
from finetune.errors import DataError

NAMES_IN_ORDER = "from finetune.data.sources.labels import sort_names; print(sort_names({'1', '01', '001', '2'}))"


def test_names_of_one_number_have_one_order_in_every_process():
    """Whatever the order in which a set gives them."""
    orders = {
        subprocess.run(
            [sys.executable, "-c", NAMES_IN_ORDER],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in range(4)
    }
    assert orders == {"('001', '01', '1', '2')"}


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_name_among_several_labels_is_refused(empty):
    with pytest.raises(DataError, match="tags: 2 rows have an empty label, the first is row 1; name or remove it"):
        labels_from_name_lists([["cat"], ["cat", empty], [], [empty]], "tags")


def test_an_image_may_have_none_of_several_labels():
    labels, names = labels_from_name_lists([["cat"], [], ["dog", "cat"]], "tags")
    assert (labels.tolist(), names) == ([[1, 0], [0, 0], [1, 1]], ("cat", "dog"))
