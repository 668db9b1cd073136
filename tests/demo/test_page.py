"""The page as a browser shows it, served by the command."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import finetune
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
DEMO = """
import sys

def say_what_it_calls(event, arguments):
    if event == "socket.connect":
        print("connects to", arguments[1], file=sys.stderr)

sys.addaudithook(say_what_it_calls)
from finetune.cli import main
sys.argv = ["finetune", "demo", *sys.argv[1:]]
main()
"""


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
def served(folder):
    """(process, URL) of the demo, which says on stderr what it connects to; ended in any case."""
    command = [sys.executable, "-c", DEMO, str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            assert "http://" in said, process.stderr.read()
            yield process, re.search(r"http://\S+", said)[0]
        finally:
            process.kill()


@contextmanager
def opened(browser, url, scheme):
    """A page on which nothing is an error, and from which nothing goes to another host."""
    page = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    page.wait_for_selector("input[type=file]", state="attached", timeout=PATIENCE)
    yield page
    assert page.locator("img:not([alt])").count() == 0
    assert problems == []
    assert [one for one in requests if not one.startswith((f"{url}/", "data:", "blob:"))] == []
    page.close()


def upload(page, path, part):
    """Uploads an image, and waits for that part of the page."""
    page.set_input_files("input[type=file]", path)
    page.wait_for_selector(part, timeout=PATIENCE)


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


def is_beside(page):
    """Whether the answer is right of the image, rather than below it; nothing is wider than the page."""
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    view, answer = (page.locator(part).bounding_box() for part in (".views", ".answer"))
    beside = answer["x"] >= view["x"] + view["width"]
    assert beside or answer["y"] >= view["y"] + view["height"]
    return beside


def test_the_page_answers_as_predict_does_at_any_width_and_ends_by_ctrl_c(run, tmp_path):
    photo, broken = tmp_path / "photo.jpg", tmp_path / "broken.png"
    photograph(320, 240, seed=1).save(photo)
    broken.write_bytes(b"no image")
    [record] = json.loads(finetune("predict", run, photo, "--coverage", "0.9", "--json").stdout)
    ordered = sorted(record["probabilities"].items(), key=lambda pair: -pair[1])[:5]
    expected = [(label, f"{share:.2%}") for label, share in ordered]
    with served(run) as (process, url), sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            with opened(browser, url, scheme) as page:
                assert page.inner_text("h1") == run.name
                assert is_dark(page) == (scheme == "dark")
                upload(page, photo, ".answer")
                assert shown(page) == (expected[0], expected)
                assert record["label"] == expected[0][0]
                assert page.locator(".unknown").count() == record["unknown"]
                assert page.locator(".member").count() == sum(label in record["set"] for label, _ in expected)
                assert (page.locator(".views img").count(), page.locator(".neighbors img").count()) == (2, 6)
                assert not is_beside(page)
                page.set_viewport_size({"width": 1440, "height": 900})
                assert is_beside(page)
                assert page.get_by_text("Drop File Here").is_visible()  # for the next one
                upload(page, broken, ".problem")
                said = page.inner_text(".problem")
                assert said.startswith("broken.png: not an image in a format that Pillow reads")
                assert (page.locator(".views").count(), page.locator(".answer").count()) == (0, 0)
                upload(page, photo, ".answer")
                assert shown(page) == (expected[0], expected)
        [uploads] = Path(tempfile.gettempdir()).glob(f"finetune-demo-{process.pid}-*")
        assert any(uploads.rglob("photo.jpg"))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE / 1000)
        assert (process.returncode, said) == (130, "ended by SIGINT\n")
        assert not uploads.exists()
        browser.close()
