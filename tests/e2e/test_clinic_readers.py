"""What readers do on the page, in a real browser: correct the mask by hand, take scans, see earlier ones."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.clinic.records import Answer
from pipeline.clinic.store import Store, new_id
from pipeline.clinic.web.auth import Tokens
from tests.e2e.browser import Page, open_browser
from tests.e2e.clinic_rig import Clinic, open_clinic
from tests.e2e.conftest import Command
from tests.e2e.test_clinic_page import LISTED, NIIVUE, SHOWN, leave, serious, sign_in

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Command]) -> Iterator[Clinic]:
    with open_clinic(tmp_path_factory.mktemp("clinic"), start) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, clinic: Clinic) -> Iterator[Page]:
    """The page that shows an answer, in the window size of a workstation."""
    with open_browser(tmp_path_factory.mktemp("browser")) as page:
        page.sized(1280, 900)
        sign_in(page, clinic)
        page.drop([clinic.scans / "chest.zip"], "#drop")
        page.wait_for(f"{SHOWN} && {LISTED}")
        yield page


def answer_of(clinic: Clinic, page: Page) -> Answer:
    """Return the answer that is shown, as the service keeps it."""
    with Store(clinic.scans.parent / "site") as store:
        return store.answers.get(str(store.jobs.get(page.js("location.hash").rpartition("/")[2]).answer_id))


def press_undo(page: Page, *, shift: bool = False) -> None:
    modifiers = 2 + 8 * shift
    key = {"key": "z", "code": "KeyZ", "windowsVirtualKeyCode": 90, "modifiers": modifiers}
    page.call("Input.dispatchKeyEvent", type="rawKeyDown", **key)
    page.call("Input.dispatchKeyEvent", type="keyUp", **key)


def changed(page: Page) -> int:
    """Return how many voxels the dialog says are changed."""
    said = page.text("#mask-figures")
    return 0 if "As the model outlined it." in said else int(said.rpartition(" voxels changed")[0].split()[-1])


def drag(page: Page, selector: str, across: float) -> None:
    """Move the mouse from the centre of an element while the left button is held."""
    x, y = page.middle(selector)
    held = {"button": "left", "buttons": 1}
    page.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, clickCount=1, **held)
    for share in (0.5, 1.0):
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + share * across, y=y, **held)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + across, y=y, button="left", clickCount=1)


def test_reader_corrects_the_mask_with_pointer_and_keyboard(page: Page, clinic: Clinic) -> None:
    page.problems.clear()
    table = page.text("#measures")
    page.click("#correct")
    page.click("#edit-mask")
    page.wait_for("document.querySelector('#mask-editor').open")
    page.wait_for_text("As the model outlined it.", "#mask-figures")
    page.wait_for("document.activeElement.id === 'mask-canvas'")
    assert serious(page) == []

    page.click("#mask-brushes [value=outside]")
    page.js("(d => { d.value = 9; d.dispatchEvent(new Event('input')) })(document.querySelector('#mask-diameter'))")
    drag(page, "#mask-canvas", -250)
    page.wait_for_text("voxels changed", "#mask-figures")
    by_pointer = changed(page)
    assert by_pointer > 20
    press_undo(page)
    page.wait_until_equal(lambda: changed(page), 0)
    press_undo(page, shift=True)
    page.wait_until_equal(lambda: changed(page), by_pointer)

    page.js("document.querySelector('#mask-canvas').focus()")
    slice_before = page.text("#mask-place")
    page.key("PageUp")
    page.wait_for_change(slice_before, "#mask-place")
    page.key("1")  # the right lung
    page.wait_for("document.querySelector('#mask-brushes :checked').value === 'right'")
    page.key("ArrowRight", shift=True)
    page.key(" ")
    page.wait_for_text("right lung", "#mask-says")
    page.wait_until_equal(lambda: changed(page) > by_pointer, True)
    by_both = changed(page)
    page.key("Escape")  # closes the dialog; the changes stay
    page.wait_for("!document.querySelector('#mask-editor').open")
    page.wait_for_text(f"{by_both} voxels of the mask are corrected", "#mask-state")
    assert not page.js("document.querySelector('#corrected-shares').checkVisibility()")
    assert answer_of(clinic, page).decision is None  # nothing is stored yet

    page.click("#reasons [value=lungs]")
    page.wait_for_text(f"mask of the lungs corrected by hand ({by_both} voxels)", "#decide-says")
    page.wait_for_text("Computed from a mask that the reader corrected by hand.", "#measures")
    answer = answer_of(clinic, page)
    assert answer.decision and answer.decision.correction.mask
    assert answer.decision.correction.mask["changed"] == by_both
    said = page.text("#measures")
    whole = answer.decision.correction.mask["regions"]["both"]["whole"]
    assert f"Both lungs, {round(whole['ml'])} mL" in said
    assert table.split("\n")[0].split(":")[0] not in said.split("The model measured")[0]  # another volume
    model = answer.score["lungs"]["regions"]
    assert f"right {round(model['right']['whole']['ml'])} mL" in said.split("The model measured")[1]
    page.wait_for("document.querySelector('#overlays [value=reader_lungs]')")
    page.click("#overlays [value=reader_lungs]")
    page.wait_for("document.querySelector('#tiles .over').src.includes('overlay=lungs&mask=reader')")
    page.wait_for("document.querySelector('#tiles .over').naturalWidth > 50")
    page.wait_for_text("Corrected by hand by Leser, Anna", "#overlay-says")
    assert serious(page) == []
    assert [each for each in page.problems if NIIVUE.is_file() or "niivue.js" not in each] == []


def test_corrected_mask_stays_when_only_a_level_is_corrected_afterwards(page: Page, clinic: Clinic) -> None:
    before = answer_of(clinic, page).decision
    page.click("#correct")
    page.wait_for_text("voxels of the mask are corrected", "#mask-state")
    page.js("document.querySelector('#level-severe').value = 'high'")
    page.click("#reasons [value=level]")
    page.wait_for_text("Severe course: high", "#decide-says")
    after = answer_of(clinic, page).decision
    assert before and after and before.id != after.id
    assert after.correction.mask == before.correction.mask
    page.click("#correct")
    page.click("#edit-mask")
    page.wait_for("document.querySelector('#mask-editor').open")
    page.click("#mask-reset")
    page.wait_until_equal(lambda: changed(page), 0)
    page.click("#mask-undo")
    page.wait_until_equal(lambda: changed(page), after.correction.mask["changed"])
    page.click("#mask-editor form button")
    page.wait_for("!document.querySelector('#mask-editor').open")
    page.click("#correct")
    page.wait_for("!document.querySelector('#decide-form').checkVisibility()")


def test_mask_that_is_not_usable_takes_one_click_and_keeps_the_levels(page: Page, clinic: Clinic) -> None:
    page.click("#mask-unusable")
    page.wait_for_text("outline of the lungs not usable", "#decide-says")
    decision = answer_of(clinic, page).decision
    assert decision and (decision.verdict, decision.reason) == ("corrected", "lungs")
    assert decision.correction.levels == {"severe": "high"}
    assert decision.correction.mask is None and not decision.correction.lungs_usable
    page.wait_for_text("The reader found the outline of the lungs not usable.", "#measures")
    page.wait_for("!document.querySelector('#mask-unusable').checkVisibility()")
    page.wait_for("!document.querySelector('#overlays [value=reader_lungs]')")


def test_focus_stays_where_the_reader_worked(page: Page) -> None:
    def press(selector: str, key: str, focused: str) -> None:
        page.js(f"document.querySelector({json.dumps(selector)}).focus()")
        page.key(key)
        page.wait_for(f"document.activeElement.id === {json.dumps(focused)}", seconds=20)

    for button in ("reject", "correct"):
        press(f"#{button}", "Enter", button)
        page.wait_for("document.querySelector('#decide-form').checkVisibility()")
        press("#decide-comment", "Escape", button)
        assert not page.js("document.querySelector('#decide-form').checkVisibility()")
    press("#take", "Enter", "release")
    press("#release", "Enter", "take")
    press("#reject", "Enter", "reject")
    press("#reasons [value=lungs]", "Enter", "decide-says")  # no button: a key that is held decides only once
    page.wait_for_text("Rejected by", "#decide-says")
    press("#mask-unusable", "Enter", "decide-says")
    page.wait_for_text("Corrected by", "#decide-says")
    page.key("Tab")
    assert page.js("document.activeElement.id") == "accept"


def lines(page: Page, shown: str) -> int:
    """Choose a filter of the worklist and count its lines."""
    choose = f"(s => {{ s.value = {json.dumps(shown)}; s.dispatchEvent(new Event('input', {{bubbles: true}})) }})"
    page.js(f"{choose}(document.querySelector('#find-shown'))")
    return int(page.js("document.querySelectorAll('#scans li').length"))


def test_reader_takes_a_scan_and_others_see_who_has_it(page: Page, clinic: Clinic) -> None:
    with Store(clinic.scans.parent / "site") as store:
        waiting = store.jobs.add(new_id(), source="upload", asked_by="test", is_whole=False)
        store.assignments.take(waiting.id, by="another", person="Other^Reader")
    page.js("document.activeElement.blur()")
    page.key("t")
    page.wait_for_text("You have this scan since", "#reader")
    page.wait_for_text("with you", "#scans [aria-current]")
    page.wait_until_equal(lambda: [lines(page, shown) for shown in ("all", "mine", "unassigned")], [2, 1, 0])
    lines(page, "all")
    here = page.js("location.hash")
    page.js(f"location.hash = '#/scans/{waiting.id}'")
    page.wait_for_text("Other, Reader has this scan since", "#reader")
    for button in ("#take", "#release"):
        assert not page.js(f"document.querySelector('{button}').checkVisibility()")
    page.wait_for_text("with Other, Reader", "#scans [aria-current]")
    assert serious(page) == []
    page.js(f"location.hash = {json.dumps(here)}")
    page.wait_for(SHOWN)
    page.click("#release")
    page.wait_for_text("Nobody has taken this scan.", "#reader")
    with Store(clinic.scans.parent / "site") as store:  # another reader is faster
        job_id = here.rpartition("/")[2]
        store.assignments.take(job_id, by="another", person="Other^Reader")
    page.js("document.querySelector('#take').click()")
    page.wait_for_text("Other, Reader has this scan since", "#reader")
    with Store(clinic.scans.parent / "site") as store:
        assert store.jobs.get(job_id).reader.person == "Other^Reader"
        assert {each.action for each in store.audit.records()} >= {"take", "release"}


def test_earlier_scan_of_the_patient_is_shown_beside_this_one(page: Page, clinic: Clinic) -> None:
    leave(page)
    page.drop([clinic.scans / "later.zip"], "#drop")  # of the same patient, nine days later
    page.wait_for(SHOWN)
    page.wait_for_text("9 days earlier", "#history")
    assert page.js("document.querySelectorAll('#history .prior').length") == 1  # not this scan itself
    assert page.js("document.querySelectorAll('#history circle').length") == 2
    page.click("#history .prior button")
    page.wait_for_text("The scans are 9 days apart. Both were scored by the same model.", "#compare-says")
    page.wait_for("[...document.querySelectorAll('#compare img')].filter((i) => i.naturalWidth > 50).length === 2")
    ids = page.js("[...document.querySelectorAll('#compare img')].map((i) => i.src.split('/').at(-4)).filter(Boolean)")
    assert len(set(ids)) >= 2
    places = "[...document.querySelectorAll('#compare output')].map((each) => each.textContent)"
    before = page.js(places)
    page.wheel("#compare .side:first-child .tiles", 300)
    page.wait_for(f"{places}.every((text, i) => text !== {json.dumps(before)}[i])")  # both move together
    assert page.text("#compare-figures").count("trial") == 2  # the model of each
    assert "Ground glass" in page.text("#compare-figures")
    assert serious(page) == []
    same = {"study": {"series_uid": "1", "acquired_at": "2020-03-04"}, "score": {"probability": {"severe": 0.1}}}
    other = {"study": {"series_uid": "2", "acquired_at": "2020-03-05"}, "score": {"probability": {"severe": 0.2}}}
    answers = [{**same, "model": {"sha256": "a"}}, {**other, "model": {"sha256": "b"}}]
    points = page.js(
        f"import('./static/history.js').then(({{ trend }}) => ['a', 'b'].map((m) => trend({json.dumps(answers)}, m)))"
    )
    assert points == [[0.1], [0.2]]  # no trend from one model to another
    page.click("#compare-close")
    page.wait_for("!document.querySelector('#compare').checkVisibility()")
    assert page.js("document.querySelectorAll('#compare img').length") == 0


def test_level_that_a_reader_set_is_in_the_filter_and_the_history(page: Page) -> None:
    line = f"#scans [href='{page.js('location.hash')}']"
    page.wait_for_text("Intermediate", line)
    page.wait_for_text("intermediate", "#history tr:has(th span)")
    lines(page, "attention")
    page.wait_for_text("Intermediate", line)
    page.click("#correct")
    page.js("document.querySelector('#level-severe').value = 'low'")
    page.click("#reasons [value=level]")
    page.wait_for_text("low", "#history tr:has(th span)")  # without opening the scan again
    page.wait_for(f'!document.querySelector("{line}")')
    lines(page, "all")
    page.wait_for_text("Low", line)


def test_line_of_the_worklist_shows_what_another_reader_decided(page: Page, clinic: Clinic, tmp_path: Path) -> None:
    folder = clinic.scans.parent / "site"
    job_id = page.js("location.hash").rpartition("/")[2]
    page.js("window.isSamePage = true")
    leave(page)
    line = f"#scans [href='#/scans/{job_id}']"
    page.wait_for_text("severe", line)
    with Store(folder) as store:
        views = [each.action for each in store.audit.records() if each.who == "a reader"]
        token = Tokens(folder).make("another reader", "score", by="a test", person="Other^Reader")
    with open_browser(tmp_path / "browser") as other:
        other.sized(1280, 900)
        sign_in(other, replace(clinic, token=token))
        other.js(f"location.hash = '#/scans/{job_id}'")
        other.wait_for(SHOWN)
        other.click("#reject")
        other.click("#reasons [value=wrong_scan]")
        other.wait_for_text("Rejected by Other, Reader", "#decide-says")
        other.wait_for_text("rejected: wrong scan or patient", "#history")
        page.wait_for_text("Rejected", line)
        with Store(folder) as store:  # found in the laboratory's results, hours after the answer
            answer_id = str(store.jobs.get(job_id).answer_id)
            store.answers.set_pcr(answer_id, "negative", None, "laboratory", "a test")
        for each in (page, other):
            each.wait_for_text("PCR negative: severe does not apply", line)
    page.requests.clear()
    page.wait_until_equal(lambda: count(page, "/jobs") >= 2, True)
    assert count(page, "/answers") == 0  # nothing changed, so nothing is fetched again
    assert page.js("isSamePage")
    with Store(folder) as store:
        again = [each.action for each in store.audit.records() if each.who == "a reader"]
    assert [each for each in again if each != "list"] == [
        each for each in views if each != "list"
    ]  # nothing was opened


def count(page: Page, path: str) -> int:
    """Count the requests of one path since the list of requests was cleared."""
    page.js("1")  # reads the events of the browser
    return sum(urlsplit(each).path.endswith(f"/api/v1{path}") for each in page.requests)
