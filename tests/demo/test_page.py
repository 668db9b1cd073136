"""The page as a browser shows it, served by the command."""

import json
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import FINETUNE, in_a_process
from photographs import photograph

from finetune.files import hash_json

pytest.importorskip("gradio", reason="needs Gradio (the extra `demo`)")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra `dev`)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)"),
]
HOSTILE = '${1+1} {{x}} <img src=x onerror="alert(1)">'
PATIENCE = 60_000  # milliseconds, on a busy machine


@pytest.fixture
def run(small_run, tmp_path):
    """The small run, with hostile names for itself and for each class."""
    folder = shutil.copytree(small_run.directory, tmp_path / HOSTILE.replace("/", ""))
    file = folder / "model" / "model.json"
    model = json.loads(file.read_text())
    del model["sha256"]
    model["class_names"] = [f"{HOSTILE} {name}" for name in model["class_names"]]
    file.write_text(json.dumps({**model, "sha256": hash_json(model)}))
    return folder


@contextmanager
def served(folder, *options):
    """(process, URL) of the demo; ended in any case."""
    command = [*FINETUNE, "demo", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            assert "http://" in said, process.stderr.read()
            yield process, re.search(r"http://\S+", said)[0]
        finally:
            process.kill()


@contextmanager
def opened(browser, url, width, scheme):
    """A page, of which nothing goes to another host and nothing is an error."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    page.wait_for_selector("input[type=file]", state="attached", timeout=PATIENCE)
    yield page
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.locator("img:not([alt])").count() == 0
    assert problems == []
    assert [one for one in requests if not one.startswith((f"{url}/", "data:", "blob:"))] == []
    page.close()


def shown(page):
    """(label, percent) in large, and those of each bar."""
    bars = page.locator(".bars li").all()
    pairs = [(bar.locator(".label").inner_text(), bar.locator(".percent").inner_text()) for bar in bars]
    return (page.inner_text(".verdict strong"), page.inner_text(".verdict span")), pairs


def is_dark(page):
    background, color = (
        sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("backgroundColor", "color")
    )
    return background < color


def test_the_page_answers_as_predict_does_at_any_width_and_ends_by_ctrl_c(run, tmp_path):
    photograph(320, 240, seed=1).save(tmp_path / "photo.jpg")
    (tmp_path / "broken.png").write_bytes(b"no image")
    record = json.loads(in_a_process("predict", run, tmp_path / "photo.jpg", "--coverage", "0.9", "--json").stdout)[0]
    ordered = sorted(record["probabilities"].items(), key=lambda pair: -pair[1])[:5]
    expected = [(label, f"{share:.2%}") for label, share in ordered]
    with served(run) as (process, url), sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (390, 1440):
            for scheme in ("light", "dark"):
                with opened(browser, url, width, scheme) as page:
                    assert page.inner_text("h1") == run.name
                    page.set_input_files("input[type=file]", tmp_path / "photo.jpg")
                    page.wait_for_selector(".answer", timeout=PATIENCE)
                    assert shown(page) == (expected[0], expected)
                    assert record["label"] == expected[0][0]
                    assert page.locator(".unknown").count() == record["unknown"]
                    assert page.locator(".member").count() == sum(label in record["set"] for label, _ in expected)
                    assert (page.locator(".views img").count(), page.locator(".neighbors img").count()) == (2, 6)
                    assert is_dark(page) == (scheme == "dark")
                    assert page.get_by_text("Drop File Here").is_visible()  # for the next one
                    view, answer = (page.locator(part).bounding_box() for part in (".views", ".answer"))
                    beside = answer["x"] >= view["x"] + view["width"]
                    assert beside == (width == 1440)
                    assert beside or answer["y"] >= view["y"] + view["height"]
        with opened(browser, url, 390, "light") as page:
            page.set_input_files("input[type=file]", tmp_path / "broken.png")
            page.wait_for_selector(".problem", timeout=PATIENCE)
            assert page.locator(".answer").count() == 0
            page.set_input_files("input[type=file]", tmp_path / "photo.jpg")
            page.wait_for_selector(".answer", timeout=PATIENCE)
            assert shown(page) == (expected[0], expected)
            page.set_input_files("input[type=file]", tmp_path / "broken.png")
            page.wait_for_selector(".problem", timeout=PATIENCE)
            assert page.inner_text(".problem").startswith("broken.png: not an image in a format that Pillow reads")
            assert page.locator(".views").count() == 0
        [uploads] = Path(tempfile.gettempdir()).glob(f"finetune-demo-{process.pid}-*")
        assert any(uploads.rglob("photo.jpg"))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE / 1000)
        assert (process.returncode, said) == (130, "ended by SIGINT\n")
        assert not uploads.exists()
        browser.close()
