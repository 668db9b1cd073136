"""What the page says of an image."""

import io

import numpy as np
import pytest
from photographs import photograph
from PIL import Image

from finetune.demo.answer import Respondent, overlay
from finetune.demo.page import prepare
from finetune.inference.explain import Explainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def respondent(small_run):
    return prepare(small_run.directory)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    photograph(40, 30).save(path)
    return path


def test_the_answer_is_that_of_predict(respondent, photo):
    (prediction,) = respondent.predictor.predict([photo], coverage=0.9)
    view, result = respondent.answer(photo)
    assert f"<strong>{prediction.label}</strong> <span>{prediction.confidence:.2%}</span>" in result
    assert ("Unknown:" in result) == prediction.unknown
    assert result.count('class="member"') == sum(
        name in prediction.set for name in sorted(prediction.probabilities, key=prediction.probabilities.get)[-5:]
    )
    assert "and 5 more classes" in result
    assert result.count("a training image of") == 6
    assert "Where it looks, for any class (attention rollout)" in view
    assert view.count('src="data:image/webp;base64,') == 2


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photograph(40, 30), "JPEG", exif=exif)


def animated():
    frames = [photograph(40, 30, seed) for seed in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


KINDS = {
    "animated.gif": animated,
    "cmyk.jpg": lambda: encoded(photograph(40, 30).convert("CMYK"), "JPEG"),
    "deep.png": lambda: encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
    "transparent.webp": lambda: encoded(photograph(40, 30).convert("RGBA"), "WEBP"),
    "rotated.jpg": rotated,
    "one pixel.bmp": lambda: encoded(Image.new("RGB", (1, 1)), "BMP"),
    "long.png": lambda: encoded(Image.new("L", (20000, 3)), "PNG"),
}


@pytest.mark.parametrize("name", KINDS)
def test_images_of_every_kind_are_read_as_predict_reads_them(respondent, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(KINDS[name]())
    (prediction,) = respondent.predictor.predict([path])
    assert f"<strong>{prediction.label}</strong> <span>{prediction.confidence:.2%}" in respondent.answer(path)[1]


BROKEN = {
    "empty.png": (b"", "empty.png: an empty file"),
    "notes.jpg": (b"no image", "notes.jpg: not an image in a format that Pillow reads safely"),
    "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "page.eps: an EPS file, which is a program"),
    "half.png": (encoded(photograph(40, 30), "PNG")[:900], "half.png: cannot be used as an image"),
    "bomb.png": (encoded(Image.new("1", (20000, 20000)), "PNG"), "bomb.png: too large to open safely"),
    "<b>${1+1}{{x}}.png": (b"no image", "&lt;b&gt;${1+1}{{x}}.png: not an image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_used_has_one_message_without_its_folder(respondent, tmp_path, name):
    data, message = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    view, result = respondent.answer(tmp_path / name)
    assert view == ""
    assert f'<p class="problem" role="alert">{message}' in result
    assert str(tmp_path) not in result


def test_what_is_not_known_is_said_or_left_out(respondent, photo, small_run):
    alone = prepare(small_run.directory / "model")
    assert "Training images: a model alone does not know them; give the folder of its run." in alone.answer(photo)[1]
    asked_not_to = prepare(small_run.directory / "model", neighbors=False)
    assert "raining images" not in asked_not_to.answer(photo)[1]
    without = small_run.predictor()
    without.confidence = None
    told = Respondent(without, Explainer(without), 0.9, None).answer(photo)[1]
    assert "The model has seen no validation images, so it cannot say how sure it may be." in told
    assert "Unknown:" not in told


@pytest.mark.parametrize(
    ("coverage", "sentence"), [(0.995, "would hold the right one in 99.5% of cases"), (0.5, "in 50%")]
)
def test_the_set_has_the_coverage_that_is_asked_for(respondent, photo, coverage, sentence):
    told = Respondent(respondent.predictor, respondent.explainer, coverage, None).answer(photo)[1]
    assert sentence in told


def test_where_the_map_is_hot_its_color_covers_the_image():
    pixels = np.full((2, 2, 1), 255, np.uint8)
    heat = np.array([[0, 1], [0, 0]], np.float32)
    drawn = overlay(pixels, heat)
    assert drawn.shape == (2, 2, 3)
    assert len(set(drawn[0, 0].tolist())) <= 2  # nearly grey
    assert drawn[0, 1].max() - drawn[0, 1].min() > 60


def test_an_image_of_several_classes_has_all_of_their_names_and_no_set(small_run, photo):
    predictor = small_run.predictor()
    predictor.multi_label, predictor.confidence = True, None
    (prediction,) = predictor.predict([photo])
    told = Respondent(predictor, Explainer(predictor), 0.9, None).answer(photo)[1]
    assert f"<strong>{', '.join(prediction.labels) or 'none of the classes'}</strong>" in told
