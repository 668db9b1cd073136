import numpy as np
import pytest

from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split
from finetune.distributed.sharding import on_one_device
from finetune.models.build import attach_head
from finetune.recipe import HeadConfig
from finetune.report.mirrored import may_be_mirrored
from finetune.run.features import RunFeatures
from finetune.run.progress import Progress

_SIZE, _COUNT = 32, 120


def bars(label, rng):
    """A bar on the left or on the right."""
    image = rng.integers(0, 60, (_SIZE, _SIZE))
    image[:, (2, 20)[label] : (12, 30)[label]] += 150
    return image


def shades(label, rng):
    """Dark or bright, alike on both sides."""
    return rng.integers(0, 60, (_SIZE, _SIZE)) + (20, 150)[label]


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "expected"), [(bars, False), (shades, True)])
def test_images_whose_class_depends_on_their_side_are_not_to_be_mirrored(tiny_clip, draw, expected):
    rng = np.random.default_rng(0)
    labels = np.arange(_COUNT) % 2
    images = np.stack([draw(label, rng) for label in labels]).astype(np.uint8)
    split = scan_images(Split(images, labels))
    classifier, variables = attach_head(tiny_clip, HeadConfig(), 2, seed=0)
    with Progress(quiet=True) as display:
        features = RunFeatures(tiny_clip.image_spec, 64, display, lambda when: None, on_one_device())
        assert may_be_mirrored(features, classifier, variables, split, 2, seed=0) is expected
