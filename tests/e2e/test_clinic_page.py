"""The clinician's page in a real browser, with a real service and synthetic scans."""

import io
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from pipeline.clinic.store import Store
from pipeline.scoring.reasons import BORDER_UNSURE, LUNGS_UNSURE
from tests.e2e.browser import Page, open_browser
from tests.e2e.clinic_rig import IN_PACS, MARKUP, Clinic, open_clinic
from tests.e2e.conftest import Command
from tests.e2e.orthanc import Orthanc

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
AXE = ROOT / "viewer/node_modules/axe-core/axe.min.js"
NIIVUE = ROOT / "pipeline/clinic/page/static/niivue.js"
A4_POINTS = (595, 842)
SHOWN = "!document.querySelector('#answer').hidden && document.querySelector('#tiles img')?.src"
LISTED = "document.querySelector('#scans [aria-current]') && document.querySelector('#history tbody tr')"


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Command]) -> Iterator[Clinic]:
    with open_clinic(tmp_path_factory.mktemp("clinic"), start) as opened:
        yield opened


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory, clinic: Clinic) -> Iterator[Page]:  # in the clinic's network
    with open_browser(tmp_path_factory.mktemp("browser")) as page:
        page.sized(1280, 800)
        yield page


def sign_in(page: Page, clinic: Clinic) -> None:
    page.goto(clinic.url)
    page.wait_for("!document.querySelector('#sign-in').hidden || !document.querySelector('#desk').hidden")
    if page.js("!document.querySelector('#sign-in').hidden"):
        page.js("document.querySelector('#token').focus()")
        page.write(clinic.token)
        page.key("Enter")
    page.wait_for("!document.querySelector('#desk').hidden")


@pytest.fixture(scope="module")
def answered(tab: Page, clinic: Clinic) -> str:
    """The URL hash of an answer. A zip was dropped, and the page showed the answer without a reload."""
    sign_in(tab, clinic)
    tab.drop([clinic.scans / "chest.zip"], "#drop")
    tab.wait_for(SHOWN)
    return str(tab.js("location.hash"))


@pytest.fixture
def page(tab: Page, clinic: Clinic, answered: str) -> Page:
    """The page that shows all of the first answer, in the window size of a workstation."""
    tab.sized(1280, 800)
    sign_in(tab, clinic)
    tab.js(f"location.hash = {json.dumps(answered)}")
    tab.wait_for(f"{SHOWN} && {LISTED}")
    tab.problems.clear()
    return tab


def leave(page: Page) -> None:
    """Close the scan that is shown, so that its answer is not taken for the next one."""
    page.js("location.hash = '#/'")
    page.wait_for("document.querySelector('#answer').hidden && document.querySelector('#state').hidden")


def dense_side(png: bytes) -> str:
    """Return the side of the brighter lung in the first of three tiles, or '' if neither lung is brighter."""
    grey = np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=np.float32)
    tile = grey[grey.shape[0] * 2 // 5 : grey.shape[0] * 3 // 5, : grey.shape[1] // 3]
    width = tile.shape[1]
    left, right = tile[:, width // 5 : width * 2 // 5], tile[:, width * 3 // 5 : width * 4 // 5]
    difference = np.median(left) - np.median(right)
    return "" if abs(difference) <= 30 else "left" if difference > 0 else "right"


def test_dropped_zip_is_answered_with_probabilities_words_and_images(page):
    assert "Research use only. Not a medical device." in page.text(".notice")
    assert "synthetic" in page.text("#synthetic")
    severe = page.text("#severe")
    assert re.search(r"\d\d\.\d %", severe)
    assert "Intermediate" in severe
    assert "95 % band" in severe
    assert "Its result is not valid for patients" in severe
    assert "High" in page.text("#pcr_positive")
    assert "60-64 years" in page.text("#saw")
    assert re.search(r"Right \d+ mL, left \d+ mL", page.text("#measures"))
    assert "Not a lesion contour" in page.text("#overlay-says")
    assert re.search(r"\(\d\d\.\d %\)", page.text("#overlay-says"))  # a map is always shown with its probability
    assert page.js("document.querySelector('#tiles img').naturalWidth") > 100


def test_sign_in_needs_the_whole_token_and_sign_out_clears_the_page(page, clinic):
    page.click("#sign-out")
    page.wait_for("!document.querySelector('#sign-in').hidden")
    assert "SYNTHETIC" not in page.text()
    page.js("document.querySelector('#token').focus()")
    page.write(clinic.token[:-1])
    page.key("Enter")
    page.wait_for_text("(E_TOKEN)", "#sign-in-refused")
    assert page.text("#sign-in").count("fedthorax clinic token") == 1
    page.goto(f"{clinic.url}/?again#token={clinic.token}")
    page.wait_for("!document.querySelector('#desk').hidden")
    assert clinic.token not in page.js("location.href")
    assert page.js("document.cookie") == ""  # scripts cannot read the session cookie


def test_single_slices_show_the_right_lung_on_the_left(page):
    page.call("Network.setBlockedURLs", urls=["*/niivue.js"])
    try:
        page.reload()
        page.wait_for_text("make viewer", "#viewer-says")
        assert page.sees(dense_side, "#tiles") == "left"
        before = page.text("#place-axial")
        page.js("document.querySelector('#tiles').focus()")
        page.key("ArrowUp")
        number = page.wait_for_change(before, "#place-axial").split()[0]
        page.wait_for(f"document.querySelector('#tiles img').src.includes('/axial/{int(number) - 1}.png')")
        page.wheel("#tiles [data-plane=axial]", 300)
        page.wait_for_text(f"{int(number) - 3} of", "#place-axial")
        page.wait_for(f"document.querySelector('#tiles img').src.includes('/axial/{int(number) - 4}.png')")
        page.js("document.activeElement.blur()")
        page.key("w")
        page.wait_for_text("L 40 W 400 HU", "#window-says")
        page.wait_for("document.querySelector('#tiles img').src.includes('window=soft')")
    finally:
        page.call("Network.setBlockedURLs", urls=[])


def warmth(png: bytes) -> float:
    """Return how much of a picture has the colours of the map (more red than blue)."""
    red, _, blue = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float32).T
    return float(np.maximum(red - blue, 0).mean())


def test_full_viewer_shows_the_right_lung_on_the_left_and_fades_overlay(page):
    if not NIIVUE.is_file():
        pytest.skip("the full viewer is not there: run `make viewer`")
    page.wait_for("document.querySelector('#tiles').classList.contains('live')")
    page.click("#overlays [value=none]")
    assert page.sees(dense_side, "#tiles") == "left"
    assert page.sees(lambda png: warmth(png) == 0, "#tiles")
    page.click("#overlays [value=saliency]")
    less = 0.0
    for fade in (20, 60, 100):
        page.js(f"(f => {{ f.value = {fade}; f.dispatchEvent(new Event('input')) }})(document.querySelector('#fade'))")
        (less,) = page.sees(lambda png, less=less: [more for more in [warmth(png)] if more > less], "#tiles")


@pytest.mark.parametrize(
    ("result", "words", "applies"),
    [
        ("positive", "Its result is not valid for patients", True),
        ("indeterminate", "Its result is not valid for patients", True),
        ("negative", "Does not apply: it is valid only for patients with a positive PCR", False),
    ],
)
def test_pcr_result_changes_the_words(page, result, words, applies):
    figure = page.text("#severe .figure strong")
    page.click(f"#pcr-form [value={result}]")
    page.js("document.querySelector('#pcr-form [type=date]').value = '2020-03-05'")
    page.click("#pcr-form button")
    page.wait_for_text(result.capitalize(), "#pcr-says")
    page.wait_for_text(words, "#severe")
    page.wait_for_text("entered by a reader", "#pcr-says")
    assert page.text("#severe .figure strong") == figure  # only the words change, not the probability
    assert "applies to this patient" not in page.text("#severe")  # the model was trained on phantoms only
    assert page.js("document.querySelector('#severe').classList.contains('void')") is not applies
    assert "5 Mar 2020" in page.text("#pcr-says")


@pytest.mark.parametrize(
    ("pcr", "words"),
    [
        ({"result": "positive"}, "this probability applies to this patient"),
        ({"result": "indeterminate"}, "if the PCR were positive"),
        (None, "No PCR result is known"),
    ],
)
def test_words_depend_on_pcr_with_a_model_of_patients(page, pcr, words):
    answer = json.dumps({"pcr": pcr, "score": {"trained_on_synthetic_data": False}})
    said = page.js(f"import('./static/probability.js').then(({{ pcrMeaning }}) => pcrMeaning({answer}).text)")
    assert words in said


def test_interval_across_a_threshold_is_shown_as_uncertain(page):
    points = {"rule_out": {"threshold": 0.46, "met": None}, "rule_in": {"threshold": 0.7, "met": False}}
    labels = ("severe", "pcr_positive")
    score = {
        "trained_on_synthetic_data": False,
        "withheld": None,
        "probability": dict.fromkeys(labels, 0.38),
        "interval": dict.fromkeys(labels, (0.19, 0.62)),
        "level": dict.fromkeys(labels, "uncertain"),
        "operating_points": dict.fromkeys(labels, points),
    }
    answer = json.dumps({"pcr": None, "score": score})
    page.js(f"import('./static/probability.js').then(({{ showProbabilities }}) => showProbabilities({answer}))")
    page.wait_for_text("Uncertain", "#severe .level")
    assert "The 95 % band crosses a threshold of the release" in page.text("#severe")


def test_card_says_what_a_threshold_reached_and_why_one_is_missing(page):
    points = {"rule_out": {"threshold": 0.2, "met": False, "says": "Sensitivity 0.93 from 45 patients."}}
    labels = ("severe", "pcr_positive")
    score = {
        "trained_on_synthetic_data": False,
        "withheld": None,
        "probability": dict.fromkeys(labels, 0.38),
        "operating_points": {"severe": points},
        "missing_points": {
            "severe": {"rule_in": "No operating point: <b>too few</b>."},
            "pcr_positive": dict.fromkeys(("rule_out", "rule_in"), "No operating point: 12 patients."),
        },
    }
    answer = json.dumps({"pcr": None, "score": score})
    page.js(f"import('./static/probability.js').then(({{ showProbabilities }}) => showProbabilities({answer}))")
    page.wait_for_text("To rule out: Sensitivity 0.93 from 45 patients.", "#severe")
    assert "No operating point: <b>too few</b>." in page.text("#severe")
    assert page.text("#pcr_positive").count("No operating point: 12 patients.") == 1
    assert "a level needs both operating points" in page.text("#pcr_positive")


def test_model_of_phantoms_gives_no_level_for_a_patient(page, clinic):
    leave(page)
    page.drop([clinic.scans / "unmarked"], "#drop")
    page.wait_for(SHOWN)
    warning = "This model was trained on synthetic data. Its result is not valid for patients."
    assert warning in page.text("#synthetic")
    for label in ("#severe", "#pcr_positive"):
        assert re.search(r"\d\d\.\d %", page.text(label))
        assert warning in page.text(label)
        assert not re.search("Low|High|Intermediate|Uncertain|rules out|rules in|applies", page.text(label))
        grey = "getComputedStyle(document.querySelector('{} .figure strong')).color.match(/\\d+/g).map(Number)"
        red, green, blue = page.js(grey.format(label))
        assert max(red, green, blue) - min(red, green, blue) < 40
    assert page.js("document.querySelectorAll('#answer .level, #answer .point').length") == 0
    for control in ("#send", "#fhir"):
        assert not page.js(f"document.querySelector('{control}').checkVisibility()")
    chosen = "#scans [aria-current]"
    page.wait_for_text("synthetic model: not valid", chosen)
    assert page.js(f"document.querySelectorAll('{chosen} .level').length") == 0
    page.wait_for_text("not valid", "#history")


def test_worklist_shows_synthetic_model_warning_next_to_the_level(page, answered):
    item = f"#scans a[href={json.dumps(answered)}]"
    page.wait_for_text("synthetic model", item)
    assert "Intermediate" in page.text(item) or "PCR negative" in page.text(item)


def test_pacs_buttons_are_shown_only_with_a_pacs(page, clinic):
    shown = page.js("document.querySelector('#choose-pacs').checkVisibility()")
    assert shown is (clinic.orthanc is not None)
    page.js("document.activeElement.blur()")
    page.js("""
        import('./static/pacs.js').then(({ allowPacs }) => allowPacs({ role: 'score', searches_pacs: false }));
        import('./static/answer.js').then(({ allow }) => allow({ role: 'score', sends_to_pacs: false }));
    """)
    for button in ("#choose-pacs", "#send"):
        page.wait_for(f"!document.querySelector('{button}').checkVisibility()")
    page.key("/")
    assert not page.js("document.querySelector('#pacs').open")


def test_times_include_the_date_and_dates_have_no_time(page):
    assert str(datetime.now().astimezone().year) in page.text("#scan-facts").rpartition("scored")[2]
    told = page.js("import('./static/dom.js').then(({ moment }) => moment('2020-03-04').textContent)")
    assert "2020" in told and ":" not in told


def looks(clinic: Clinic) -> list[str | None]:
    """Return the ids of the answers that were opened, from the audit log."""
    with Store(clinic.scans.parent / "site") as store:
        return [record.answer_id for record in store.audit.records(limit=10_000) if record.action == "look"]


def test_second_scan_of_a_patient_appears_in_the_history(page, clinic):
    before = looks(clinic)
    page.listen()
    page.drop([clinic.scans / "later"], "#drop")
    page.wait_to_hear("Answered:")
    assert looks(clinic) == before  # the worklist shows its probability, but nobody opened the answer
    page.js("location.hash = document.querySelector('#scans a').getAttribute('href')")
    page.wait_for("document.querySelectorAll('#history tbody tr').length === 2")
    assert len(looks(clinic)) == len(before) + 1
    assert page.text("#history").count("trial") == 2  # the name of the model
    page.click("#history tbody a")
    page.wait_for_text("(this)", "#history tbody tr:nth-child(2)")


def test_scan_sent_again_has_one_line_and_one_point_of_the_trend(page, clinic):
    lines = []
    for _ in range(2):  # an earlier test may have sent it too
        page.listen()
        page.drop([clinic.scans / "later"], "#drop")
        page.wait_to_hear("Answered:")
        lines.append(page.js("document.querySelectorAll('#scans li').length"))
    assert lines[0] == lines[1]
    assert re.search(r"the same scan, sent \d times", page.text("#scans li"))
    page.js("location.hash = document.querySelector('#scans a').getAttribute('href')")
    page.wait_for("document.querySelectorAll('#history tbody tr').length === 2")
    page.wait_for("document.querySelector('#scans a').getAttribute('aria-current') === 'true'")
    twice = [
        {"study": {"series_uid": uid, "acquired_at": day}, "score": {"input": {}, "probability": {"severe": share}}}
        for uid, day, share in (("1", "2020-03-04", 0.1), ("2", "2020-03-01", 0.3), ("1", "2020-03-04", 0.2))
    ]
    points = page.js(f"import('./static/history.js').then(({{ trend }}) => trend({json.dumps(twice)}))")
    assert points == [0.3, 0.1]


def test_scan_without_lungs_gets_a_reason_and_a_remedy_but_no_score(page, clinic):
    leave(page)
    page.drop([clinic.scans / "none.zip"], "#drop")
    page.wait_for_text("No score", "#state")
    assert "E_NO_LUNGS" in page.text("#state-code")
    assert page.text("#state-says")
    assert page.text("#state-remedy")
    assert not re.search(r"\d %", page.text("#scan"))
    page.wait_for("[...document.querySelectorAll('#tiles img')].filter(i => i.naturalWidth > 50).length === 3")
    page.js("(s => { s.value = 9; s.dispatchEvent(new Event('input')) })(document.querySelector('#sliders input'))")
    page.wait_for("document.querySelector('#tiles img').src.includes('/axial/9.png')")
    page.wheel("#tiles [data-plane=axial]", -200)
    page.wait_for("document.querySelector('#tiles img').src.includes('/axial/11.png')")
    page.js("document.activeElement.blur()")
    page.key("w")
    page.wait_for("document.querySelector('#tiles img').src.includes('window=soft')")
    assert str(datetime.now().astimezone().year) in page.text("#state-times")
    page.js("window.print = () => (window.printed = true)")
    page.click("#state-print")
    page.wait_for("window.printed")
    content = page.pdf()
    assert len(re.findall(rb"/Type /Page\b", content)) == 1
    assert content.count(b"/Subtype /Image") >= 3
    page.js("location.hash = '#/'")
    page.wait_for("!document.querySelector('#tiles img')")  # not shown with the next patient


def test_worklist_is_searched_and_filtered_and_shows_all_again(page, clinic):
    count = "document.querySelectorAll('#scans li').length"
    page.wait_for(f"{count} >= 3")
    everything = page.js(count)
    page.js("document.activeElement.blur()")
    page.key("s")
    page.wait_for("document.activeElement.id === 'find-text'")
    page.write("patient like")
    page.wait_for(f"{count} === 1")
    assert "LIKE, PATIENT" in page.text("#scans")
    assert f"1 of {everything} scans shown." in page.text("#find-says")
    choose = "(s => {{ s.value = '{}'; s.dispatchEvent(new Event('input', {{bubbles: true}})) }})({})"
    page.js(choose.format("", "document.querySelector('#find-text')"))
    page.js(choose.format("no_score", "document.querySelector('#find-shown')"))
    page.wait_for(f"{count} < {everything}")
    assert page.js("[...document.querySelectorAll('#scans li')].every((item) => item.dataset.state === 'no_score')")
    page.js(choose.format("all", "document.querySelector('#find-shown')"))
    page.js(choose.format("urgent", "document.querySelector('#find-order')"))
    page.wait_for(f"{count} === {everything}")  # an order hides nothing
    page.js(choose.format("newest", "document.querySelector('#find-order')"))


def test_severe_and_certain_scans_come_first_if_ordered_by_urgency(page):
    def line(name, level, share, **more):
        score = {"probability": {"severe": share}, "level": {"severe": level}, "withheld": None, **more}
        return [{"id": name}, {"pcr": None, "score": score}]

    lines = [
        line("low", "low", 0.1),
        [{"id": "waiting"}, None],
        line("withheld", None, 0.99, withheld="This model was trained on synthetic data."),
        line("uncertain", "uncertain", 0.7),
        line("intermediate", "intermediate", 0.4),
        line("high", "high", 0.8),
        line("higher", "high", 0.9),
    ]
    order = page.js(
        f"import('./static/find.js').then(({{ byUrgency }}) => byUrgency({json.dumps(lines)}).map(([job]) => job.id))"
    )
    assert order == ["higher", "high", "intermediate", "uncertain", "waiting", "withheld", "low"]


def test_level_of_the_reader_counts_in_filter_and_order(page):
    def line(name, level, share, reviewed=None):
        score = {"probability": {"severe": share}, "level": level and {"severe": level}, "withheld": None}
        says = reviewed and {"level": {"severe": reviewed}, "lungs": None}
        return [{"id": name, "state": "answered"}, {"pcr": None, "score": score, "reviewed": says}]

    lines = [
        line("low", "low", 0.1),
        line("made high", "low", 0.05, "high"),
        line("high", "high", 0.9),
        line("made low", "high", 0.95, "low"),
        line("not changed", "intermediate", 0.4, "intermediate"),
        line("set without thresholds", None, 0.5, "uncertain"),
    ]
    order, attention = page.js(
        f"""import('./static/find.js').then(({{ byUrgency, matches }}) => [
            byUrgency({json.dumps(lines)}),
            {json.dumps(lines)}.filter(([job, answer]) => matches(job, answer, {{ text: '', shown: 'attention' }})),
        ].map((found) => found.map(([job]) => job.id)))"""
    )
    assert order == ["high", "made high", "not changed", "set without thresholds", "made low", "low"]
    assert attention == ["made high", "high", "not changed", "set without thresholds"]


def test_scan_of_the_wrong_patient_is_not_in_the_trend(page):
    def answer(uid, share, verdict=None, reason=None):
        score = {"input": {}, "probability": {"severe": share}}
        decision = verdict and {"verdict": verdict, "reason": reason}
        return {"study": {"series_uid": uid, "acquired_at": f"2020-03-0{uid}"}, "score": score, "decision": decision}

    answers = [
        answer("4", 0.4, "rejected", "image_quality"),  # of this patient all the same
        answer("3", 0.3),  # the wrong scan was scored again
        answer("3", 0.35, "rejected", "wrong_scan"),
        answer("2", 0.2, "corrected", "wrong_scan"),
        answer("1", 0.1, "accepted"),
    ]
    points = page.js(f"import('./static/history.js').then(({{ trend }}) => trend({json.dumps(answers)}))")
    assert points == [0.1, 0.2, 0.4]


def test_scan_is_fetched_from_the_pacs_and_its_result_sent_back(page, clinic):
    if clinic.orthanc is None:
        pytest.skip("no real PACS here (Debian packages orthanc and orthanc-dicomweb)")
    leave(page)
    page.key("/")
    page.wait_for("document.querySelector('#pacs').open")
    page.js("document.querySelector('#pacs [name=patient_id]').focus()")
    page.write(IN_PACS)
    page.key("Enter")
    page.wait_for_text("1 series found", "#pacs-says")
    page.wait_for_text("PACS, PAT", "#pacs-found")
    page.click("#pacs-found button")
    page.wait_for(SHOWN)
    assert IN_PACS in page.text("#patient-facts")
    assert not page.js("document.querySelector('#send').checkVisibility()")  # nobody has accepted it yet
    page.click("#accept")
    page.wait_for_text("Accepted by Leser, Anna", "#decide-says")
    page.click("#send")
    page.wait_for_text("In the PACS since", "#pacs-state")
    (report,) = reports_in(clinic.orthanc)
    assert (report["VerificationFlag"], report["PatientID"]) == ("VERIFIED", IN_PACS)
    (observer,) = report["VerifyingObserverSequence"]
    assert observer["VerifyingObserverName"] == "Leser^Anna"
    page.click("#reject")
    page.click("#reasons [value=image_quality]")
    page.wait_for_text("Rejected in the PACS since", "#pacs-state")
    assert len(clinic.orthanc.rest("POST", "/tools/find", b'{"Level": "Series", "Query": {"Modality": "KO"}}')) == 1


def reports_in(orthanc: Orthanc) -> list[dict[str, Any]]:
    """Return the headers of all structured reports in the PACS."""
    found = orthanc.rest("POST", "/tools/find", b'{"Level": "Instance", "Query": {"Modality": "SR"}}')
    return [orthanc.rest("GET", f"/instances/{each}/simplified-tags") for each in found]


# --- the reader's decision ---


def decisions(clinic: Clinic, page: Page) -> list[str]:
    """Return the verdicts about the answer that is shown, oldest first."""
    job_id = page.js("location.hash").rpartition("/")[2]
    with Store(clinic.scans.parent / "site") as store:
        return [each.verdict for each in store.decisions.of(str(store.jobs.get(job_id).answer_id))]


def test_reader_accepts_with_one_click_and_a_double_click_counts_once(page, clinic):
    before = decisions(clinic, page)
    page.js("document.querySelector('#accept').click(); document.querySelector('#accept').click()")
    page.wait_for_text("Accepted by Leser, Anna", "#decide-says")
    page.wait_for_text("Accepted", "#scans [aria-current]")
    assert decisions(clinic, page) == [*before, "accepted"]


def test_reader_rejects_with_two_clicks(page, clinic):
    page.click("#reject")
    page.wait_for("document.querySelector('#decide-form').checkVisibility()")
    assert not page.js("document.querySelector('#corrections').checkVisibility()")
    page.click("#reasons [value=lungs]")
    page.wait_for_text("Rejected by Leser, Anna", "#decide-says")
    assert "Outline of the lungs is wrong" in page.text("#decide-says")
    page.wait_for_text("Rejected", "#scans [aria-current]")
    assert decisions(clinic, page)[-1] == "rejected"


def test_reader_corrects_level_and_table_with_the_keyboard(page, clinic):
    page.js("document.activeElement.blur()")
    page.key("c")
    page.wait_for("document.querySelector('#corrections').checkVisibility()")
    page.js("document.querySelector('#level-severe').value = 'high'")
    field = "document.querySelector('#corrected-shares [data-side=left][data-part=upper][data-density=consolidation]')"
    page.js(f"{field}.value = '12.5'")
    page.js("document.querySelector('#reasons [value=missed]').focus()")
    page.key("Enter")
    page.wait_for_text("Corrected by Leser, Anna", "#decide-says")
    page.wait_for_text("12.5 %", "#measures")
    assert "Severe course: high" in page.text("#decide-says")
    assert "High" in page.text("#severe .figure")
    assert "Set by the reader: high. The model said: intermediate." in page.text("#severe")
    page.click("#correct")
    page.wait_for(f"{field}.checkVisibility() && {field}.value === '12.5'")
    page.click("#lungs-unusable")
    page.click("#reasons [value=lungs]")
    page.wait_for_text("outline of the lungs not usable", "#decide-says")
    page.wait_for_text("The reader found the outline of the lungs not usable.", "#measures")
    assert decisions(clinic, page)[-2:] == ["corrected", "corrected"]


def test_answer_that_changed_meanwhile_is_shown_again_before_a_decision(page, clinic):
    with Store(clinic.scans.parent / "site") as store:
        answer_id = str(store.jobs.get(page.js("location.hash").rpartition("/")[2]).answer_id)
        changed = store.answers.set_pcr(answer_id, "negative", None, "entered", "somebody else")
    before = decisions(clinic, page)
    page.click("#accept")
    page.wait_for_text("(E_ANSWER_CHANGED)", "#decide-refused")
    page.wait_for_text("Negative", "#pcr-says")
    assert decisions(clinic, page) == before
    page.click("#accept")
    page.wait_for_text("Accepted by Leser, Anna", "#decide-says")
    assert changed.id and decisions(clinic, page) == [*before, "accepted"]


def test_scan_opens_in_the_hospitals_viewer_with_escaped_values(page, clinic):
    with Store(clinic.scans.parent / "site") as store:
        answer = store.answers.get(str(store.jobs.get(page.js("location.hash").rpartition("/")[2]).answer_id))
    link = "document.querySelector('#open-viewer')"
    assert page.js(f"{link}.checkVisibility()")
    expected = f"https://viewer.example/?study={answer.study_uid}&patient={quote(MARKUP, safe='')}"
    assert page.js(f"{link}.href") == expected
    assert page.js(f"{link}.rel") == "noopener noreferrer"
    assert page.js("import('./static/answer.js').then((a) => a.filled('{study_uid}', {study_uid: 'a&b=\"#'}))") == (
        "a%26b%3D%22%23"
    )


def test_audit_shows_decisions_and_drift(page):
    page.click("#show-audit")
    page.wait_for_text("Corrected", "#audit-found")
    assert "too few answers" in page.text("#audit-found")
    assert "Severe course: the model said" in page.text("#audit-found")
    close(page, "#audit")


def test_user_who_is_no_named_person_sees_the_decision_but_no_buttons(page):
    page.js(
        "import('./static/decide.js').then((d) => { d.allowDecide({ role: 'score', person: '' }); d.closeDecide() })"
    )
    leave(page)
    page.js("history.back()")
    page.wait_for(SHOWN)
    assert not page.js("document.querySelector('#accept').checkVisibility()")
    assert page.text("#decide-says")
    page.js("import('./static/decide.js').then((d) => d.allowDecide({ role: 'score', person: 'Leser^Anna' }))")


def assert_one_page_with_images(page: Page) -> None:
    page.js("import('./static/viewer.js').then(viewer => viewer.readyToPrint())")
    content = page.pdf()
    boxes = set(re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content))
    assert {(round(float(w)), round(float(h))) for w, h in boxes} == {A4_POINTS}
    assert len(re.findall(rb"/Type /Page\b", content)) == 1
    assert content.count(b"/Subtype /Image") >= 3


def test_answer_prints_on_one_a4_page_with_images(page):
    assert_one_page_with_images(page)


def test_answer_with_warnings_prints_on_one_page_too(page):
    flagged = {"unsure_border": (BORDER_UNSURE, 4.4), "lungs_agree": (LUNGS_UNSURE, 81)}
    changes = {
        name: {"value": value, "verdict": "flag", "code": reason.code, "says": reason.says, "remedy": reason.remedy}
        for name, (reason, value) in flagged.items()
    }
    page.js(
        f"""Promise.all([import('./static/api.js'), import('./static/facts.js')]).then(async ([api, facts]) => {{
            const job = await api.ask('jobs/' + location.hash.split('/').pop());
            const {{ score }} = await api.ask('answers/' + job.answer_id);
            const changes = {json.dumps(changes)};
            const quality = score.quality.map((check) => ({{ ...check, ...changes[check.name] }}));
            const byId = (id) => document.getElementById(id);
            facts.showQuality(byId('quality'), byId('flagged'), quality, 'probabilities');
        }})"""
    )
    try:
        assert page.text("#flagged") and BORDER_UNSURE.remedy in page.text("#quality")
        assert_one_page_with_images(page)
    finally:
        page.reload()


def test_pcr_result_of_another_time_is_not_to_be_used(page):
    """The result is only drawn: the other tests enter those of the clinic."""
    page.js(
        """Promise.all(['api', 'pcr', 'probability'].map((name) => import(`./static/${name}.js`))).then(
            async ([{ ask }, { showPcr }, { showProbabilities }]) => {
                const job = await ask('jobs/' + location.hash.split('/').pop());
                const answer = await ask('answers/' + job.answer_id);
                const timing = { days_from_ct: -8, window: { from_days: -7, to_days: 2 }, is_outside: true };
                const pcr = { result: 'positive', collected_on: '2020-02-25', source: 'entered', by: 'x', timing };
                answer.score.trained_on_synthetic_data = false;
                answer.score.withheld = null;
                showPcr({ ...answer, pcr });
                showProbabilities({ ...answer, pcr });
            })"""
    )
    try:
        assert "8 days before the CT. It does not count for this scan" in page.text("#pcr-says")
        assert "from 7 days before the CT to 2 days after the CT" in page.text("#pcr-says")
        assert "use that result" not in page.text("#pcr_positive")
        assert "The known PCR result is of another time." in page.text("#severe")
    finally:
        page.reload()


def test_remark_without_spaces_does_not_widen_the_page(page):
    """The decision is only drawn: the other tests count those of the clinic."""
    page.js(
        """Promise.all([import('./static/api.js'), import('./static/decide.js')]).then(async ([api, decide]) => {
            const job = await api.ask('jobs/' + location.hash.split('/').pop());
            const answer = await api.ask('answers/' + job.answer_id);
            const correction = { levels: {}, shares: {}, mask: null, lungs_usable: true };
            const by = { person: 'Leser^Anna', at: answer.created_at };
            const made = { ...by, verdict: 'rejected', reason: 'other', correction };
            decide.showDecide({ ...answer, revision: '', decision: { ...made, comment: 'x'.repeat(500) } });
        })"""
    )
    try:
        assert "x" * 500 in page.text("#decide-says")
        assert page.js("document.querySelector('#scan').scrollWidth <= document.querySelector('#scan').clientWidth")
        assert page.js("document.documentElement.scrollWidth <= innerWidth")
    finally:
        page.reload()


def test_page_is_usable_with_keyboard_only(page, clinic, answered):
    page.js("document.querySelector('#sign-out').click()")
    page.wait_for("document.activeElement.id === 'token'")
    page.write(clinic.token)
    page.key("Enter")
    page.wait_for(f"document.querySelector('#scans a[href={json.dumps(answered)}]')")
    leave(page)
    page.js("document.activeElement.blur()")
    # A list that changes meanwhile may move the focus past the link: it comes again in a second turn.
    for _ in range(60):
        page.key("Tab")
        if page.js("document.activeElement === document.body"):  # past the last element
            continue
        page.wait_for("getComputedStyle(document.activeElement).outlineStyle !== 'none'")  # the focus is visible
        if page.js("document.activeElement.getAttribute('href')") == answered:
            break
    assert page.js("document.activeElement.getAttribute('href')") == answered
    page.key("Enter")
    page.wait_for(SHOWN)
    shown = page.wait_for_change("", "#sliders")
    page.key("i")
    page.wait_for("document.activeElement.id === 'tiles'")
    for name, shift in (("ArrowUp", False), ("ArrowLeft", False), ("ArrowUp", True)):
        page.key(name, shift=shift)
        shown = page.wait_for_change(shown, "#sliders")
    page.key("o")
    page.wait_for("document.querySelector('#overlays :checked').value === 'none'")
    page.key("?")
    page.wait_for("document.querySelector('#keys').open")
    assert "PACS" in page.text("#keys")
    close(page, "#keys")
    page.key("p")
    page.wait_for("document.querySelector('#pcr-form').contains(document.activeElement)")
    page.key(" ")
    page.wait_for("document.querySelector('#pcr-form').elements.result.value === 'positive'")


def test_repeated_answer_does_not_overwrite_unsaved_input(page, answered):
    """Covers a late response to an earlier request, and the list that shows a changed scan again."""
    page.js("""
        window.asked = fetch;
        window.late = [];
        window.fetch = (address, ...more) => {
            const answer = asked(address, ...more);
            if (!/answers\\/[^/]+$/.test(address) || late.length) return answer;
            const slow = new Promise((resolve) => (window.deliver = () => resolve(answer)));
            late.push(slow);
            return slow;
        };
        location.hash = '#/';
    """)
    page.wait_for("document.querySelector('#answer').hidden")
    page.js(f"location.hash = {json.dumps(answered)}")
    page.wait_for("late.length")
    page.js("location.hash = '#/'")
    page.wait_for("!document.querySelector('#nothing').hidden")
    page.js(f"location.hash = {json.dumps(answered)}")
    page.wait_for(SHOWN)
    page.click("#pcr-form [value=indeterminate]")
    page.wait_for("document.querySelector('#pcr-form').elements.result.value === 'indeterminate'")
    page.js("deliver()")
    page.wait_for("late[0].then(() => new Promise((resolve) => setTimeout(resolve, 300, true)))")
    page.js("window.fetch = asked")
    assert page.js("document.querySelector('#pcr-form').elements.result.value") == "indeterminate"
    page.js("location.hash = '#/'")
    page.wait_for("document.querySelector('#answer').hidden")
    page.js(f"location.hash = {json.dumps(answered)}")
    page.wait_for(SHOWN)
    assert page.js("document.querySelector('#pcr-form').elements.result.value") != "indeterminate"  # not saved


def test_worklist_refresh_keeps_the_focus(page, answered):
    page.wait_for(f"document.querySelector('#scans a[href={json.dumps(answered)}]')")
    page.js(f"document.querySelector('#scans a[href={json.dumps(answered)}]').focus()")
    refreshes = "performance.getEntriesByType('resource').filter(({ name }) => name.includes('/jobs?')).length"
    finished = page.js(refreshes)
    page.js("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for(f"{refreshes} > {finished}")
    page.wait_for("new Promise(resolve => setTimeout(resolve, 300, true))")
    assert page.js("document.activeElement.getAttribute('href')") == answered


@pytest.mark.parametrize("width", [1280, 820, 520, 390])
def test_page_has_no_horizontal_overflow_at_any_width(page, width):
    page.sized(width, 1100)
    page.wait_for(f"innerWidth === {width}")
    for overflow in ("document.documentElement", "document.querySelector('#scan')"):
        page.wait_for(f"{overflow}.scrollWidth <= {overflow}.clientWidth")
    assert page.js("document.querySelector('.notice').checkVisibility()")
    assert page.js("document.querySelector('#severe .figure').getBoundingClientRect().width") > 100
    assert page.js("document.querySelector('#who-asks').checkVisibility()")
    page.js("document.querySelector('#who-asks bdi').textContent = 'a reader '.repeat(7)")
    page.wait_for("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize(
    ("dialog", "last", "width"), [("keys", "enter a PCR result", 1280), ("audit", "Severe course: mean", 390)]
)
def test_long_dialog_opens_at_its_title(page, dialog, last, width):
    page.sized(width, 500)
    page.js(f"document.querySelector('#show-{dialog}').focus()")
    page.key("Enter")
    page.wait_for_text(last, f"#{dialog}")
    page.wait_for(f"(d => d.scrollHeight > d.clientHeight)(document.querySelector('#{dialog}'))")
    assert page.js(f"document.querySelector('#{dialog}').scrollTop") == 0
    shown = "(e => e.getBoundingClientRect().bottom <= document.querySelector('{}').getBoundingClientRect().bottom)({})"
    for part in (f"document.querySelector('#{dialog}-title')", "document.activeElement"):
        assert page.js(shown.format(f"#{dialog}", part))
    close(page, f"#{dialog}")
    page.wait_for(f"document.activeElement.id === 'show-{dialog}'")


def test_probability_and_its_band_are_visible_with_forced_colours(page):
    page.call("Emulation.setEmulatedMedia", media="", features=[{"name": "forced-colors", "value": "active"}])
    try:
        page.wait_for("matchMedia('(forced-colors: active)').matches")
        band, width, marker = page.js(
            "(scale => ['.band', '.marker'].flatMap((part) => (r => part === '.band' ? [r.x - scale.x, r.width]"
            " : [r.x - scale.x + r.width / 2])(document.querySelector(`#severe ${part}`).getBoundingClientRect())))"
            "(document.querySelector('#severe .line').getBoundingClientRect())"
        )
        line = np.asarray(Image.open(io.BytesIO(page.png("#severe .line"))).convert("RGB"))
        row = line[line.shape[0] // 2]
        ground, inside, here = (tuple(row[round(x)]) for x in (band - 5, band + width / 4, marker))
        assert len({ground, inside, here}) == 3
    finally:
        page.call("Emulation.setEmulatedMedia", media="", features=[])


def test_refusal_shows_commands_as_code_and_no_markup(page):
    text = "Run `a <b>`, then `c`. A ` stays."
    shown = page.js(
        "import('./static/dom.js').then(({ element, say }) => { const p = element('p');"
        f" say(p, {json.dumps(text)}); return p.innerHTML }})"
    )
    assert shown == "Run <code>a &lt;b&gt;</code>, then <code>c</code>. A ` stays."


def close(page: Page, dialog: str) -> None:
    page.key("Escape")
    page.wait_for(f"!document.querySelector({json.dumps(dialog)})?.open")


def serious(page: Page) -> list[str]:
    """Return the serious findings of axe-core: impact, rule and location."""
    if not AXE.is_file():
        pytest.skip("axe-core is not there: run `make viewer`")
    page.js(AXE.read_text())
    found = page.js("axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations)")
    return [
        f"{each['impact']}: {each['id']} at {each['nodes'][0]['target']} of {len(each['nodes'])}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def test_axe_finds_no_serious_violations(page, clinic):
    page.wait_for("document.querySelectorAll('#history tr').length")
    assert serious(page) == []
    for opens in ("#show-audit", "#show-keys", *(["#choose-pacs"] if clinic.orthanc else [])):
        page.click(opens)
        page.wait_for("document.querySelector('dialog[open]')")
        assert serious(page) == []
        close(page, "dialog[open]")
    page.click("#sign-out")
    page.wait_for("!document.querySelector('#sign-in').hidden")
    assert serious(page) == []


def test_patient_names_are_not_interpreted_and_no_third_party_is_requested(page, clinic):
    for where in ("#answer .who", "#scans"):
        page.wait_for_text(MARKUP, where)  # the worklist arrives after the answer
        assert "<b>O</b>N, Ann" in page.text(where)
    assert page.js("document.querySelectorAll('img[src=x]').length") == 0
    assert page.js("document.title") != "1"
    page.js("document.querySelector('#show-keys').click()")
    own = [url for url in page.requests if url.startswith((clinic.url, f"blob:{clinic.url}", "data:"))]
    assert own == page.requests
    assert len(own) > 50
    problems = [each for each in page.problems if NIIVUE.is_file() or "niivue.js" not in each]
    assert problems == []  # includes violations of the content security policy
