"""The report page in a real browser: no horizontal overflow, all figures drawn, print fits on A4."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from federation.report.page import write_report
from tests.helpers.results_factory import make_results

pytestmark = pytest.mark.e2e
# Inserted into a copy of the page: the page itself contains no script.
MEASURE = """<script>
addEventListener("load", () => {
  document.title = JSON.stringify({
    window: innerWidth,
    page: document.documentElement.scrollWidth,
    figures: [...document.images].map(image => image.naturalWidth),
    headings: [...document.querySelectorAll("h2")].map(heading => heading.offsetTop),
  });
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("Chromium is not installed")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = make_results(
        ["north", "a-hospital-with-a-name-of-forty-letters-x", "east", "west", "coast", "hills", "lake"]
    )
    return write_report(results, tmp_path_factory.mktemp("report")).page


def headless(browser: str, profile: Path, *arguments: str) -> str:
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.parametrize("width", [1280, 520])
def test_page_has_no_overflow_and_all_figures(browser, page, tmp_path, width):
    copy = tmp_path / "measured.html"
    text = re.sub(r"<meta http-equiv=.*?>", "", page.read_text())
    copy.write_text(text.replace("</body>", MEASURE + "</body>"))
    dom = headless(browser, tmp_path / "profile", f"--window-size={width},900", "--dump-dom", copy.as_uri())
    found = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    assert found["page"] <= found["window"]
    assert len(found["figures"]) == 11  # no ROC curve of all patients: the counts are too coarse for one
    assert min(found["figures"]) > 0
    assert found["headings"] == sorted(found["headings"])


def test_report_prints_on_a4(browser, page, tmp_path):
    sheet = tmp_path / "report.pdf"
    headless(browser, tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={sheet}", page.as_uri())
    content = sheet.read_bytes()
    boxes = set(re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content))
    assert {(round(float(w)), round(float(h))) for w, h in boxes} == {(595, 842)}  # A4 in points
    assert 8 <= len(re.findall(rb"/Type /Page\b", content)) <= 30
