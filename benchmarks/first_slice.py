"""Time until the page shows the images of a scan: after its answer was stored, and after a person opens it.

With a real service and a real browser: headless Chromium, which renders WebGL in software, on the same cores as the
service. The page records when it shows an image, with the same clock that the service uses for the time when the answer
was stored.
"""

import contextlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest  # tests.e2e skips if there is no browser

from federation.system.process import free_port
from pipeline.clinic.settings import Clinic
from pipeline.clinic.web.auth import Tokens

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.e2e.browser import Page, open_browser
from tests.e2e.conftest import Command

REPEATS = 2  # after the first answer of a session
FIRST, VIEWER, OPENED = "first slice", "full viewer", "opened"
NIIVUE = Path(__file__).parents[1] / "pipeline/clinic/page/static/niivue.js"
_WAIT_SECONDS = 120.0
_SLICE = "!document.querySelector('#answer').hidden && document.querySelector('#tiles img')?.naturalWidth"
_LIVE = "document.querySelector('#tiles.live')"
_WATCH = f"""
window.seen = {{}};
(function look() {{
  if (!seen.first && {_SLICE}) seen.first = Date.now();
  if (!seen.viewer && {_LIVE}) seen.viewer = Date.now();
  if (!seen.viewer) requestAnimationFrame(look);
}})()"""


def seconds_to_pictures(folder: Path) -> dict[str, list[float]] | None:
    """Seconds by FIRST and VIEWER, after the stored answer, and by OPENED; the first answer of the session comes first.

    OPENED: from the choice of an answered scan to its first slice, on a page that was just loaded.

    None if there is no browser, or no viewer in the package (`make viewer`).

    `folder`: with the scan in `series` and the release in `model`.
    """
    if not NIIVUE.is_file():
        return None
    zipped = folder / "series.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for path in sorted((folder / "series").rglob("*.dcm")):
            archive.write(path, path.name)
    with contextlib.ExitStack() as stack:
        try:
            page = stack.enter_context(open_browser(folder / "browser"))
        except pytest.skip.Exception:
            return None
        page.sized(1280, 800)
        stack.enter_context(_served(folder, page))
        return _watch(Clinic.open(folder / "served"), page, zipped)


@contextlib.contextmanager
def _served(folder: Path, page: Page) -> Iterator[None]:
    """Start the service, and a page that is signed in to it."""
    site = folder / "served"
    site.mkdir()
    port = free_port()
    (site / "clinic.toml").write_text(f"[server]\nport = {port}\n")
    service = Command(folder / "served.log", "serve", site, "--model", folder / "model")
    try:
        service.wait_for(rf"http://127\.0\.0\.1:{port}", seconds=_WAIT_SECONDS)
        token = Tokens(site).make("a reader", "score", by="bench")
        page.goto(f"http://127.0.0.1:{port}/#token={token}")
        page.wait_for("!document.querySelector('#desk').hidden", seconds=_WAIT_SECONDS)
        yield
    finally:
        service.interrupt()


def _watch(clinic: Clinic, page: Page, zipped: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {FIRST: [], VIEWER: [], OPENED: []}
    with clinic.store() as store:
        for _ in range(REPEATS + 1):
            page.js("location.hash = ''")
            page.wait_for("document.querySelector('#answer').hidden")
            page.js(_WATCH)
            page.drop([zipped], "#drop")
            page.wait_for("seen.viewer", seconds=_WAIT_SECONDS)
            job = store.jobs.get(str(page.js("location.hash")).rpartition("/")[2])
            assert job.ended_at is not None
            for name, at in ((FIRST, "first"), (VIEWER, "viewer")):
                found[name].append(page.js(f"seen.{at}") / 1000 - job.ended_at.timestamp())
            found[OPENED].append(_seconds_to_open(page))
    return found


def _seconds_to_open(page: Page) -> float:
    """Load the page again without a scan, then open the scan that it shows now."""
    scan = page.js("location.hash")
    page.goto(str(page.js("location.origin")))
    page.wait_for("!document.querySelector('#desk').hidden && document.querySelector('#answer').hidden")
    page.js(f"{_WATCH}; window.chosen = Date.now(); location.hash = {json.dumps(scan)}")
    page.wait_for("seen.first", seconds=_WAIT_SECONDS)
    return float(page.js("seen.first - chosen")) / 1000
