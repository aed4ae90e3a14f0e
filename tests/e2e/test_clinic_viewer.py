"""The images on the clinician's page, in a real browser: the same with single slices and with the full viewer."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.clinic.pictures import LUNGS, OPACITIES
from pipeline.clinic.store import Store
from pipeline.clinic.unscored import LUNGS_JSON
from tests.e2e.browser import Page, open_browser
from tests.e2e.clinic_rig import GRID, Clinic, open_clinic
from tests.e2e.conftest import Command
from tests.e2e.test_clinic_page import LISTED, NIIVUE, SHOWN, leave, serious, sign_in

pytestmark = pytest.mark.e2e

SINGLE, FULL = "single slices", "full viewer"
HEIGHT_MM, DEPTH_MM, WIDTH_MM = (size * mm for size, mm in zip(GRID.shape, GRID.spacing_mm, strict=True))
ERROR_MM = 2.0  # of a mouse that moves by whole pixels
PLANES = ("axial", "coronal", "sagittal")
Point = tuple[float, float]  # shares of a picture's width and height


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Command]) -> Iterator[Clinic]:
    with open_clinic(tmp_path_factory.mktemp("clinic"), start) as opened:
        yield opened


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory, clinic: Clinic) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("browser")) as page:
        page.sized(1280, 900)
        sign_in(page, clinic)
        page.drop([clinic.scans / "chest.zip"], "#drop")
        page.wait_for(SHOWN)
        yield page


@pytest.fixture(scope="module", params=[SINGLE, FULL])
def page(request: pytest.FixtureRequest, tab: Page) -> Page:
    """The page that shows an answer."""
    if request.param == FULL and not NIIVUE.is_file():
        pytest.skip("the full viewer is not there: run `make viewer`")
    tab.call("Network.setBlockedURLs", urls=[] if request.param == FULL else ["*/niivue.js"])
    tab.reload()
    tab.wait_for(f"{SHOWN} && {LISTED}")
    tab.wait_for(
        "document.querySelector('#tiles').classList.contains('live')"
        if request.param == FULL
        else "document.querySelector('#viewer-says').innerText.includes('make viewer')"
    )
    tab.problems.clear()
    return tab


def at(page: Page, plane: str, point: Point) -> Point:
    """Return where a point of a picture is on the screen."""
    page.middle(f"#tiles [data-plane={plane}]")
    x, y, scale, columns, rows = page.js(
        f"(svg => (({{ e, f, a }}, {{ width, height }}) => [e, f, a, width, height])(svg.getScreenCTM(),"
        f" svg.viewBox.baseVal))(document.querySelector('#tiles [data-plane={plane}] svg'))"
    )
    return x + scale * columns * point[0], y + scale * rows * point[1]


def drag(page: Page, plane: str, *points: Point) -> None:
    """Press the left button at the first point of a picture, and release it at the last one."""
    places = [at(page, plane, point) for point in points]
    kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"]
    for kind, (x, y) in zip(kinds, [*places, places[-1]], strict=True):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
    drawn(page)


def drawn(page: Page) -> None:
    page.js("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")


def shortcut(page: Page, key: str) -> None:
    page.js("document.activeElement.blur()")
    page.key(key)
    drawn(page)


def slices(page: Page) -> dict[str, int]:
    """Return the number of the slice of each plane, from 0."""
    return {each: int(page.js(f"document.querySelector('#slider-{each}').value")) for each in PLANES}


def wait_for_slices(page: Page, **expected: float) -> None:
    """Wait until these planes show the expected slice, or one next to it."""
    page.wait_for(
        " && ".join(
            f"Math.abs(document.querySelector('#slider-{plane}').value - {number}) <= 1"
            for plane, number in expected.items()
        )
    )


@pytest.mark.parametrize("plane", PLANES)
def test_wheel_moves_through_the_slices_under_the_mouse(page: Page, plane: str) -> None:
    before = slices(page)
    page.wheel(f"#tiles [data-plane={plane}]", 300)
    page.wait_for(f"document.querySelector('#slider-{plane}').value == {before[plane] - 3}")
    assert slices(page) == {**before, plane: before[plane] - 3}


def test_click_moves_the_other_planes_to_the_same_place(page: Page) -> None:
    height, depth, width = GRID.shape
    axial = slices(page)["axial"]
    drag(page, "axial", (0.3, 0.6))
    wait_for_slices(page, sagittal=0.3 * width, coronal=0.6 * depth)
    assert slices(page)["axial"] == axial
    drag(page, "coronal", (0.5, 0.5), (0.6, 0.25))  # the upper quarter; the planes follow while the button is held
    wait_for_slices(page, sagittal=0.6 * width, axial=0.75 * height)


@pytest.mark.parametrize(
    ("plane", "begin", "end", "expected_mm"),
    [
        ("axial", (0.2, 0.5), (0.7, 0.5), 0.5 * WIDTH_MM),
        ("axial", (0.5, 0.2), (0.5, 0.6), 0.4 * DEPTH_MM),
        ("coronal", (0.5, 0.2), (0.5, 0.7), 0.5 * HEIGHT_MM),
        ("sagittal", (0.2, 0.2), (0.5, 0.6), np.hypot(0.3 * DEPTH_MM, 0.4 * HEIGHT_MM)),
    ],
)
def test_distance_is_measured_in_mm_of_an_anisotropic_scan(
    page: Page, plane: str, begin: Point, end: Point, expected_mm: float
) -> None:
    before = slices(page)
    shortcut(page, "d")
    page.wait_for("document.querySelector('#measure').ariaPressed === 'true'")
    drag(page, plane, begin, end)
    said = "document.querySelector('#distance').textContent"
    page.wait_for(f"Math.abs({said}.match(/^Distance ([\\d.]+) mm$/)[1] - {expected_mm}) <= {ERROR_MM}")
    label = f"document.querySelector('#tiles [data-plane={plane}] .distance text').textContent"
    page.wait_for(f"'Distance ' + {label} === {said}")
    assert slices(page) == before  # measuring moves no plane
    page.wheel(f"#tiles [data-plane={plane}]", 100)
    page.wait_for(f"!document.querySelector('#tiles [data-plane={plane}] .distance text')")  # not in another slice
    shortcut(page, "d")
    page.wait_until_equal(lambda: page.text("#distance"), "")


def test_distance_is_measured_with_the_keyboard(page: Page) -> None:
    shortcut(page, "d")
    shortcut(page, "i")
    page.wait_for("document.activeElement.id === 'tiles'")
    sagittal = slices(page)["sagittal"]
    page.key("Enter")
    for _ in range(10):
        page.key("ArrowLeft")
    page.key("Enter")
    page.key("ArrowLeft")  # both ends stay
    page.wait_until_equal(lambda: slices(page)["sagittal"], sagittal - 11)
    page.wait_until_equal(lambda: page.text("#distance"), f"Distance {10 * GRID.spacing_mm[2]:.1f} mm")
    drawn(page)
    assert page.text("#distance") == f"Distance {10 * GRID.spacing_mm[2]:.1f} mm"
    shortcut(page, "d")


def test_window_is_set_by_preset_number_and_right_button(page: Page) -> None:
    assert page.text("#window-says") == "L -600 W 1500 HU"
    page.click("#overlays [value=none]")
    wait_for_overlay(page, "none")
    grey = page.sees(brightness, "#tiles")
    shortcut(page, "w")
    page.wait_until_equal(lambda: page.text("#window-says"), "L 40 W 400 HU")
    assert page.js("document.querySelector('#window').selectedOptions[0].text") == "Mediastinum"
    page.drag_right_button("#tiles [data-plane=axial]", 50, -100)
    page.wait_for_text("L -160 W 500 HU", "#window-says")
    assert page.js("document.querySelector('#window').value") == "own"
    page.wait_for("document.querySelector('#tiles img').src.includes('window=-410,90')")  # also in print
    for id_, value in (("window-level", -900), ("window-width", 1500)):
        page.js(
            f"(e => {{ e.value = {value}; e.dispatchEvent(new Event('change')) }})(document.getElementById('{id_}'))"
        )
    page.wait_for_text("L -900 W 1500 HU", "#window-says")
    assert page.sees(lambda png: brightness(png) > grey + 5, "#tiles")


def wait_for_overlay(page: Page, name: str) -> None:
    """Wait until all three slices have this overlay; behind the full viewer they follow it for printing."""
    over = "[...document.querySelectorAll('#tiles .over')]"
    has_it = "hidden" if name == "none" else f"src.includes('overlay={name}')"
    page.wait_for(f"{over}.length === 3 && {over}.every(({{ hidden, src }}) => {has_it})")


def brightness(png: bytes) -> float:
    return float(np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=np.float32).mean())


def yellow(png: bytes) -> float:
    """Return the share of a picture with the colour of ground glass."""
    red, green, blue = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float32).T
    return float(((red - blue > 40) & (green - blue > 15)).mean())


def test_counted_voxels_have_outlines_or_areas_and_a_legend(page: Page) -> None:
    page.js("(f => { f.value = 100; f.dispatchEvent(new Event('input')) })(document.querySelector('#fade'))")
    drag(page, "coronal", (0.3, 0.5))  # in the right lung, which is ground glass
    page.click("#overlays [value=opacities]")
    assert page.js("document.querySelector('#outlined').checked")
    wait_for_overlay(page, "opacity_outlines")
    outlined = page.sees(yellow, "#tiles")
    assert outlined > 0.0005
    shortcut(page, "l")
    assert page.sees(lambda png: yellow(png) > 2 * outlined, "#tiles")
    page.wait_for_text("Ground glass, -700 to -300 HU", "#overlay-says")
    page.wait_for_text("Consolidation, -300 to 100 HU", "#overlay-says")
    for name, colour in (("glass", "rgb(255, 200, 60)"), ("consolidation", "rgb(214, 30, 120)")):
        swatch = f"getComputedStyle(document.querySelector('#overlay-says .{name}')).backgroundColor"
        assert page.js(swatch) == colour
    shortcut(page, "l")
    assert serious(page) == []
    page.click("#overlays [value=none]")


def test_images_stay_where_they_are_when_the_worklist_arrives(page: Page) -> None:
    """The worklist may arrive after the scan that the address names."""
    page.requests.clear()
    page.reload()
    page.wait_for(SHOWN)
    first = slices(page)
    before = {**first, "axial": first["axial"] - 3}
    page.wheel("#tiles [data-plane=axial]", 300)
    page.wait_until_equal(lambda: slices(page), before)
    page.wait_for("document.querySelector('#scans [aria-current]')")
    page.wait_for("(document.dispatchEvent(new Event('visibilitychange')), true)")
    page.wait_for("new Promise((resolve) => setTimeout(resolve, 500, true))")
    assert slices(page) == before
    assert len([url for url in page.requests if url.endswith("/slices")]) == 1


def test_abstained_scan_has_mask_table_measuring_and_print(tab: Page, clinic: Clinic) -> None:
    """The lungs of the answered scan are put beside a scan that got no score, as the worker does for a whole chest."""
    with Store(clinic.scans.parent / "site") as store:
        answer = store.answers.get(str(store.jobs.get(tab.js("location.hash").rpartition("/")[2]).answer_id))
    leave(tab)
    tab.drop([clinic.scans / "none.zip"], "#drop")
    tab.wait_for_text("No score", "#state")
    with Store(clinic.scans.parent / "site") as store:
        pictures = store.jobs.get(tab.js("location.hash").rpartition("/")[2]).pictures
    flagged = {"name": "reader", "value": "W_THICK", "unit": "", "verdict": "flag", "code": "W_THICK"}
    quality = [{**flagged, "says": "the slices are thick", "remedy": "Prefer thinner ones."}]
    _add_lungs(answer.folder, {**answer.score["lungs"], "quality": quality}, pictures)
    tab.reload()
    tab.wait_for_text("Both lungs", "#refused-measures")
    tab.wait_for_text("1 of 1 quality checks", "#refused-flagged")
    tab.wait_for_text("Check: the slices are thick. Prefer thinner ones. (W_THICK)", "#refused-quality")
    tab.wait_for("[...document.querySelectorAll('#tiles img')].filter((i) => i.naturalWidth > 50).length >= 3")
    test_click_moves_the_other_planes_to_the_same_place(tab)
    test_wheel_moves_through_the_slices_under_the_mouse(tab, "coronal")
    test_distance_is_measured_in_mm_of_an_anisotropic_scan(tab, "axial", (0.2, 0.5), (0.7, 0.5), 0.5 * WIDTH_MM)
    test_distance_is_measured_with_the_keyboard(tab)
    tab.click("#overlays [value=opacities]")
    tab.wait_for("document.querySelector('#tiles .over').src.includes('overlay=opacity_outlines')")
    tab.wait_for_text("Ground glass, -700 to -300 HU", "#overlay-says")
    assert serious(tab) == []
    content = tab.pdf()
    assert content.count(b"/Subtype /Image") >= 3
    assert tab.problems == []


def _add_lungs(folder: Path, lungs: object, pictures: Path) -> None:
    for name in (LUNGS, OPACITIES):
        (pictures / name).write_bytes((folder / name).read_bytes())
    (pictures / LUNGS_JSON).write_text(json.dumps(lungs))
