"""The site builds without a warning, and a browser shows it."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest
from paths import ROOT

pytest.importorskip("material", reason="needs the extra `docs`")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.slow
PAGES = ("", "your-images/", "recipe/", "command-line/", "api/", "errors/", "ARCHITECTURE/")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_there_and_filled_in(site):
    for page in PAGES:
        assert (site / page / "index.html").is_file()
    html = {page: (site / page / "index.html").read_text(encoding="utf-8") for page in PAGES}
    assert 'id="TrainStage"' in html["recipe/"]
    assert 'id="doctor"' in html["command-line/"]
    assert "lac|aps|raps" in html["command-line/"]
    assert "already holds a run" in html["errors/"]
    assert 'id="finetune.models.backbone.load_backbone"' in html["api/"]
    assert not [
        page for page, text in html.items() if "<!-- reference" in text or re.search(r":(func|class|meth):", text)
    ]
    assert not [path for path in site.rglob("*") if path.suffix in (".py", ".pyc") or path.name == "errors.yaml"]


def test_no_page_fetches_anything_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(
            r'<(script|img|iframe|source|link rel="(stylesheet|preload)")[^>]*(src|href)="(https?:)?//', text
        )
        assert 'class="mermaid"' not in text, f"{page}: the theme would fetch mermaid's script"


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")
def test_pages_fit_phones_and_desks_by_day_and_by_night(address):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra `dev`)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for width in (390, 1440):
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                said, requests = [], []
                page.on("console", lambda message, said=said: said.append(message.text))
                page.on("pageerror", lambda error, said=said: said.append(str(error)))
                page.on("request", lambda request, requests=requests: requests.append(request.url))
                for name in PAGES:
                    page.goto(address + name)
                    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), (name, width)
                background = page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 384) == (scheme == "dark")
                assert said == []
                assert [url for url in requests if not url.startswith((address, "data:"))] == []
                page.close()
        browser.close()
