"""Take screenshots of what the three users see, from a demo folder: `make pictures`, after `make demo`.

    python -m tests.pictures DEMO_DIR OUT_DIR

Writes doctor.webp, report.webp and clinic.webp. All patients in them are synthetic.
"""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from federation.system.process import free_port
from tests.e2e.browser import Page, open_browser
from tests.e2e.conftest import Command, run_command

WIDTH_PIXELS, HEIGHT_PIXELS = 1280, 900
MAX_BYTES = 200_000
ANSWERED = "!document.querySelector('#answer').hidden && document.querySelector('#tiles img')?.src"


def main(demo: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        with open_browser(work / "browser") as page:
            page.sized(WIDTH_PIXELS, HEIGHT_PIXELS)
            show_doctor(page, demo / "sites" / "north", work)
            save(page.png(), out / "doctor.webp")
            page.goto((demo / "report" / "report.html").resolve().as_uri())
            save(page.png(), out / "report.webp")
            with serve(demo / "model", work) as (url, token):
                show_answer(page, url, token, zip_of_a_scan(demo / "hospitals" / "east", work))
                save(page.png(), out / "clinic.webp")


def show_doctor(page: Page, site: Path, work: Path) -> None:
    """Show the page of `node check`. The command exits with 1 here: the hospital has planted faults."""
    report = work / "check.html"
    done = run_command("node", "check", site, "--page", report)
    if not report.exists():
        raise SystemExit(done.stdout + done.stderr)
    page.goto(report.as_uri())


def zip_of_a_scan(hospital: Path, work: Path) -> Path:
    """Return the scan that the demo scores: the first severe patient without a planted defect."""
    patients = json.loads((hospital / "truth.json").read_text())["patients"]
    patient = next(p for p in patients if p["severe"] and p["pcr_positive"] and p["defect"] is None)
    return Path(shutil.make_archive(str(work / "scan"), "zip", hospital / "ct" / patient["patient_id"]))


@contextmanager
def serve(model: Path, work: Path) -> Iterator[tuple[str, str]]:
    """Serve the clinician's page inside the block. Yields its address and a token to sign in with."""
    folder = work / "clinic"
    folder.mkdir()
    port = free_port()
    (folder / "clinic.toml").write_text(f"[server]\nport = {port}\n")
    served = Command(work / "serve.log", "serve", folder, "--model", model)
    try:
        url = served.wait_for(rf"http://127\.0\.0\.1:{port}", seconds=120)
        made = run_command("clinic", "token", folder, "a reader", "--role", "score", "--json")
        yield url, json.loads(made.stdout)["token"]
    finally:
        served.interrupt()


def show_answer(page: Page, url: str, token: str, scan: Path) -> None:
    page.goto(url)
    page.wait_for("!document.querySelector('#sign-in').hidden")
    page.js("document.querySelector('#token').focus()")
    page.write(token)
    page.key("Enter")
    page.wait_for("!document.querySelector('#desk').hidden")
    page.drop([scan], "#drop")
    page.wait_for(ANSWERED, seconds=120)
    page.wait_for("[...document.querySelectorAll('#tiles img')].every(image => image.complete)")


def save(png: bytes, path: Path) -> None:
    """Save as WebP, with the best quality that stays below MAX_BYTES."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for quality in (90, 80, 65, 50):
        image.save(path, quality=quality, method=6)
        if path.stat().st_size < MAX_BYTES:
            return
    raise SystemExit(f"{path.name} is larger than {MAX_BYTES} bytes in any quality")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
