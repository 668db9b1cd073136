"""Pages as a browser shows them."""

import json
import re
import shutil

import numpy as np
import pytest

import finetune
from finetune.report.compare_page import write_comparison

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra `dev`)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)"),
]
WITHOUT_ALT = """[
  ...document.querySelectorAll("img:not([alt]), img[alt='']"),
  ...document.querySelectorAll("svg:not([aria-label]):not([aria-hidden])"),
].map(element => element.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """A run on 100 classes with long and hostile names: LeNet on noise around a pattern for each class."""
    folder, rng = tmp_path_factory.mktemp("hundred"), np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 14)
    patterns = rng.integers(0, 256, (100, 28, 28))
    images = np.clip(patterns[labels] + rng.normal(0, 90, (len(labels), 28, 28)), 0, 255).astype(np.uint8)
    names = np.array([f"<b>{i}</b> a class whose name is long & Ünï" for i in range(100)])
    np.savez(folder / "images.npz", images=images, labels=labels, class_names=names)
    recipe = {
        "backbone": {"module": "finetune.models.lenet:LeNet", "image": {"size": 28, "channels": 1}},
        "data": {"source": "images.npz", "validation": 0.2, "test": 0.5},
        "stages": [
            {"type": "linear_probe", "name": "probe", "l2": 0.1},
            {"epochs": 2, "batch_size": 28, "partitions": [{"match": ".*", "learning_rate": 1e-3}]},
        ],
    }
    (folder / "r.yaml").write_text(json.dumps(recipe))
    return finetune.run(finetune.load_recipe(folder / "r.yaml"), output=folder / "run", quiet=True)


@pytest.fixture(scope="module", params=["run", "hundred classes", "comparison"])
def file(request, small_run, tmp_path_factory):
    if request.param == "run":
        return small_run.report
    hundred = request.getfixturevalue("hundred")
    if request.param == "hundred classes":
        return hundred.report
    path = tmp_path_factory.mktemp("side") / "side.html"
    write_comparison([small_run.directory, small_run.directory, hundred.directory], path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits_is_described_and_loads_nothing_else(browser, file, scheme, width, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, requests = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert said == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate(WITHOUT_ALT) == []
    background, color = (
        sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("backgroundColor", "color")
    )
    assert (background < color) == (scheme == "dark")
    assert (tmp_path / "page.png").stat().st_size > 50_000
    page.close()
