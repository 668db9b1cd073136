import numpy as np
from photographs import photograph

from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split
from finetune.data.leakage import describe_leakage
from finetune.data.splits import Splits


def split_of(*seeds):
    images = [np.asarray(photograph(20, 16, seed)) for seed in seeds]
    return scan_images(Split(images, np.arange(len(seeds), dtype=np.int32) % 2))


def test_images_in_two_splits_are_one_line_that_names_the_first():
    leaking = Splits(split_of(0, 1, 2), None, split_of(0, 9), ("ant", "bee"))
    assert describe_leakage(leaking) == (
        "leakage: 1 of test also in train; the first: test: image 0 = train: image 0; see: finetune check-data"
    )
    assert describe_leakage(Splits(split_of(0, 1, 2), None, split_of(8, 9), ("ant", "bee"))) is None
