import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from finetune.data.labeled_images import Split
from finetune.data.loader import evaluation_batches, steps_per_epoch, training_batches
from finetune.errors import DataError
from finetune.images.open import open_image
from finetune.images.spec import ImageSpec

SPEC = ImageSpec(8, 8, None, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
COUNT = 23
SPLIT = Split(np.full((COUNT, 8, 8), np.arange(COUNT)[:, None, None], np.uint8), np.arange(COUNT, dtype=np.int32))


def unaugmented(image, rng):
    return SPEC.to_uint8(open_image(image))


def random_pixel(image, rng):
    """A draw of the generator as a pixel."""
    return np.full((1, 1, 3), rng.integers(256), np.uint8)


def labels(iterator, batches):
    return [next(iterator)["label"].tolist() for _ in range(batches)]


def test_a_batch_holds_uint8_images_with_their_labels():
    batch = next(training_batches(SPLIT, unaugmented, 5, seed=0))
    assert (batch["image"].dtype, batch["image"].shape) == (np.uint8, (5, 8, 8, 3))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
    assert batch["label"].dtype == np.int32


def test_the_order_is_a_function_of_the_seed():
    a, again, b = (labels(training_batches(SPLIT, unaugmented, 5, seed=seed), 8) for seed in (3, 3, 4))
    assert a == again
    assert a != b


def test_each_epoch_has_another_order_and_no_image_twice():
    steps = steps_per_epoch(SPLIT, 5)
    iterator = training_batches(SPLIT, unaugmented, 5, seed=0)
    epochs = [np.concatenate(labels(iterator, steps)) for _ in range(3)]
    assert steps == 4
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 20
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


@pytest.mark.parametrize("taken", [0, 3, 6])
def test_a_saved_state_resumes_with_the_next_batch(taken):
    iterator = training_batches(SPLIT, unaugmented, 5, seed=1)
    labels(iterator, taken)
    state = iterator.get_state()
    rest = labels(iterator, 7)
    resumed = training_batches(SPLIT, unaugmented, 5, seed=1)
    resumed.set_state(state)
    assert labels(resumed, 7) == rest


@pytest.mark.slow
def test_worker_processes_do_not_change_the_order():
    expected = labels(training_batches(SPLIT, unaugmented, 5, seed=2), 6)
    iterator = training_batches(SPLIT, unaugmented, 5, seed=2, num_workers=2)
    assert labels(iterator, 6) == expected
    iterator.close()


def test_an_images_generator_is_a_function_of_seed_epoch_and_index():
    def draws(seed, batches=8):
        iterator = training_batches(SPLIT, random_pixel, 5, seed=seed)
        return [next(iterator)["image"][:, 0, 0, 0].tolist() for _ in range(batches)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    first, second = draws(0)[:4], draws(0)[4:]
    assert first != second


@pytest.mark.parametrize("count", [2, 5])
def test_the_shares_of_processes_are_the_same_batches_bit_for_bit(count):
    whole = training_batches(SPLIT, random_pixel, 10, seed=3)
    shares = [training_batches(SPLIT, random_pixel, 10, seed=3, share=r) for r in np.arange(10).reshape(count, -1)]
    for _ in range(5):
        batch, parts = next(whole), [next(share) for share in shares]
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])


UNEVEN = Split(
    np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((20, 8, 8), np.uint8), np.int32([0] * 16 + [1] * 4)
)


def test_balanced_sampling_takes_each_class_equally_often_and_every_image():
    iterator = training_batches(UNEVEN, unaugmented, 8, seed=0, balanced=True)
    batches = [next(iterator) for _ in range(4)]
    assert all(np.bincount(batch["label"]).tolist() == [4, 4] for batch in batches)
    assert len({int(value) for batch in batches for value in batch["image"][:, 0, 0, 0]}) == 20


def test_balanced_sampling_resumes_with_the_next_batch():
    def pixels(iterator, count):
        return [next(iterator)["image"][:, 0, 0, 0].tolist() for _ in range(count)]

    iterator = training_batches(UNEVEN, unaugmented, 8, seed=0, balanced=True)
    pixels(iterator, 3)
    state = iterator.get_state()
    rest = pixels(iterator, 3)
    resumed = training_batches(UNEVEN, unaugmented, 8, seed=0, balanced=True)
    resumed.set_state(state)
    assert pixels(resumed, 3) == rest


def test_the_shares_of_balanced_batches_are_parts_of_the_same_batches():
    def pixels(**options):
        iterator = training_batches(UNEVEN, unaugmented, 8, seed=0, balanced=True, **options)
        return [next(iterator)["image"][:, 0, 0, 0].tolist() for _ in range(4)]

    batches, shares = pixels(), [pixels(share=rows) for rows in np.arange(8).reshape(4, 2)]
    for batch, parts in zip(batches, zip(*shares, strict=True), strict=True):
        assert batch == [value for part in parts for value in part]


def test_balanced_sampling_of_images_with_many_labels_is_an_error():
    multi_label = Split(UNEVEN.images, np.eye(20, dtype=np.float32))
    with pytest.raises(DataError, match="balanced needs images with one label each"):
        training_batches(multi_label, unaugmented, 8, seed=0, balanced=True)


def white_if_jax_has_a_backend(image, rng):
    from jax._src import xla_bridge

    return np.full((1, 1, 3), 255 * xla_bridge.backends_are_initialized(), np.uint8)


def test_worker_processes_touch_no_device():
    jnp.zeros(1).block_until_ready()  # unlike this process
    iterator = training_batches(SPLIT, white_if_jax_has_a_backend, 5, seed=2, num_workers=1)
    assert not next(iterator)["image"].any()
    iterator.close()


def test_evaluation_covers_each_image_once_in_order_and_pads_the_last_batch():
    batches = list(evaluation_batches(SPLIT, SPEC, 10))
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert [len(batch["image"]) for batch in batches] == [10, 10, 10]
    assert weight.tolist() == [1] * 23 + [0] * 7
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches])[weight == 1], SPLIT.labels)
    assert not batches[-1]["image"][3:].any()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches_of_an_evaluation(count):
    whole = list(evaluation_batches(SPLIT, SPEC, 8))
    shares = [list(evaluation_batches(SPLIT, SPEC, 8, share=rows)) for rows in np.arange(8).reshape(count, -1)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        for name in ("image", "label", "weight"):
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined[batch["weight"] == 1], batch[name][batch["weight"] == 1])
            assert joined.shape == batch[name].shape


def test_a_process_without_an_image_of_the_last_batch_brings_padding():
    (batch,) = evaluation_batches(SPLIT.take(np.arange(2)), SPEC, 8, share=np.arange(4, 8))
    assert batch["image"].shape[0] == 4
    assert not batch["weight"].any()


def test_a_batch_larger_than_the_split_is_an_error():
    assert steps_per_epoch(SPLIT, 23) == 1
    with pytest.raises(DataError, match="batch_size: 24 is more than the 23 training images"):
        steps_per_epoch(SPLIT, 24)


def test_a_broken_image_is_named(tmp_path):
    files = [tmp_path / f"{i}.jpg" for i in range(3)]
    for file in files:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    files[1].write_bytes(files[1].read_bytes()[:-400])
    with pytest.raises(DataError, match=r"1\.jpg: cannot be used as an image"):
        list(evaluation_batches(Split(files, np.zeros(3, np.int32)), SPEC, 3))
