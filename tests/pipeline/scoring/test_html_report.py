"""Tests of the HTML report of one score: content, orientation, no external resources. All scans are synthetic."""

import base64
import html
import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.provenance import AuditRecord, FlagRecord, Provenance
from models.reasons import NOT_RELEASED
from models.refusal import Refusal
from pipeline.imaging.volume import Volume
from pipeline.preprocessing import reasons
from pipeline.preprocessing.preprocess import Prepared
from pipeline.scoring.colormap import CONTOUR_RGB
from pipeline.scoring.html_report import View, percent, render, views, write_report
from pipeline.scoring.quality_checks import Check
from pipeline.scoring.score import Score
from tests.helpers.descriptions import description
from tests.helpers.lungs import burden_of

BONE_HU, TISSUE_HU, LUNG_HU = 1000.0, 0.0, -850.0
POINTS = {"rule_out": 0.15, "rule_in": 0.4}


def prepared() -> Prepared:
    """Two lungs, the right one larger, with bone to the right of, in front of and above the right lung."""
    hu = np.full((60, 50, 70), TISSUE_HU, dtype=np.float32)
    lungs = np.zeros(hu.shape, dtype=bool)
    lungs[10:50, 10:40, 10:32] = True
    lungs[15:45, 15:35, 38:60] = True
    hu[lungs] = LUNG_HU
    hu[:, :, 2:6] = hu[:, 3:6, :] = hu[54:57] = BONE_HU
    return Prepared(
        tensor=np.zeros((2, 4, 5, 6), dtype=np.float16),
        image_hu=hu,
        lungs=lungs,
        spacing_mm=4.0,
        lungs_ml=3000.0,
        shift_hu=0.0,
        affine=np.diag([-4.0, -4.0, 4.0, 1.0])[:, [2, 1, 0, 3]],
        box=(slice(8, 52), slice(8, 42), slice(8, 62)),
    )


MAP = np.zeros((4, 5, 6), dtype=np.float32)
MAP[1, 3, 1] = 1.0  # in the right lung


def score(*, synthetic: bool = False, study: str = "trial") -> Score:
    model = description(study=study, trained_on_synthetic_data=synthetic)
    scan = prepared()
    return Score(
        probabilities={"severe": 0.1234, "pcr_positive": 0.98765},
        checks=(Check("slices", 52), Check("lungs", 3000, "mL")),
        age_band="60-64",
        sex="F",
        model=model,
        model_sha256="a1" * 32,
        hu_sha256="b2" * 32,
        seconds={"read": 0.1, "prepare": 0.2, "predict": 0.2, "explain": 0.1, "total": 0.6},
        scored_at=datetime(2021, 3, 4, 3, 15, tzinfo=UTC),
        prepared=scan,
        volume=Volume(scan.image_hu.astype(np.int16), scan.affine),
        burden=burden_of(scan),
    )


def test_reasons_to_doubt_the_model_are_shown() -> None:
    flag = FlagRecord(code="W_AT_CHANCE", site="", says="severe may be no better than <chance>")
    story = Provenance(
        candidate="",
        seed=1,
        rounds_planned=1,
        rounds_lost=0,
        stopped_early=False,
        strategy_options={},
        sites={},
        audit=None,
        doubts=(flag,),
        despite_flags="a test & no more",
        study={},
    )
    candidate = score()
    doubted = replace(candidate, model=candidate.model.model_copy(update={"provenance": story}))
    page = render(doubted)
    assert "severe may be no better than &lt;chance&gt;" in page and "a test &amp; no more" in page
    assert doubted.to_json()["model"]["doubts"] == [flag.says]
    sound = story.model_copy(update={"doubts": (), "despite_flags": ""})
    without = replace(doubted, model=doubted.model.model_copy(update={"provenance": sound}))
    assert "Reason to doubt it" not in render(without)
    audit = AuditRecord(probe_accuracy=None, probe_chance=None, sites={}, flags=(flag,))
    early = sound.model_copy(update={"audit": audit, "despite_flags": "early"})
    page = render(replace(doubted, model=doubted.model.model_copy(update={"provenance": early})))
    assert "severe may be no better than &lt;chance&gt;" in page and "early" in page


def test_page_of_a_candidate_says_that_nobody_released_the_model() -> None:
    assert score().model.provenance is None
    page = render(score())
    assert NOT_RELEASED.says in page
    assert "Released because" not in page


def pixels(view: View) -> NDArray[np.uint8]:
    head, data = view.png.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def bright_edge(view: View, letter: str) -> bool:
    """Whether the outer sixth of the picture, on the side labelled `letter`, contains a line of bone."""
    grey = pixels(view)[..., 0].astype(float)
    side = view.letters.index(letter)
    lines = grey.mean(axis=0 if side < 2 else 1)
    if side in (1, 3):
        lines = lines[::-1]
    return bool(lines[: len(lines) // 6].max() > 240)


def test_orientation_letters_match_the_patient() -> None:
    axial, coronal, sagittal = views(prepared(), burden_of(prepared()))
    assert bright_edge(axial, "R") and not bright_edge(axial, "L")
    assert bright_edge(axial, "A") and not bright_edge(axial, "P")
    assert bright_edge(coronal, "R") and not bright_edge(coronal, "L")
    assert bright_edge(coronal, "H") and not bright_edge(coronal, "F")
    assert bright_edge(sagittal, "A") and not bright_edge(sagittal, "P")
    assert bright_edge(sagittal, "H") and not bright_edge(sagittal, "F")
    # Radiological convention: the patient's right is on the left of the picture.
    assert axial.letters[:2] == coronal.letters[:2] == ("R", "L")


def test_sagittal_view_shows_the_larger_lung_and_names_it() -> None:
    scan = prepared()
    mirrored = replace(scan, lungs=scan.lungs[:, :, ::-1].copy(), image_hu=scan.image_hu[:, :, ::-1].copy())
    alone = scan.lungs.copy()
    alone[:, :, :35] = False
    assert views(scan, burden_of(scan))[2].title == "Sagittal, right lung"
    assert views(mirrored, burden_of(mirrored))[2].title == "Sagittal, left lung"
    right_is_missing = replace(scan, lungs=alone)
    assert views(right_is_missing, burden_of(right_is_missing))[2].title == "Sagittal, left lung"


def test_pictures_keep_the_aspect_ratio() -> None:
    for view in views(prepared(), burden_of(prepared())):
        height, width, _ = pixels(view).shape
        assert height / view.rows == width / view.columns
    axial, coronal, sagittal = views(prepared(), burden_of(prepared()))
    assert axial.columns == coronal.columns
    assert coronal.rows == sagittal.rows
    assert sagittal.columns == axial.rows


def test_lung_contour_follows_the_lung_edge() -> None:
    axial = views(prepared(), burden_of(prepared()))[0]
    drawn = (pixels(axial) == CONTOUR_RGB).all(axis=2)
    scale = drawn.shape[1] // axial.columns
    # The crop begins 40 mm (ten voxels) before the lungs, so at voxel 0 of both axes.
    near = np.zeros(drawn.shape, dtype=bool)
    for rows, columns in ((slice(10, 40), slice(10, 32)), (slice(15, 35), slice(38, 60))):
        top, bottom, left, right = (scale * n for n in (rows.start, rows.stop, columns.start, columns.stop))
        near[top - 4 : bottom + 4, left - 4 : right + 4] = True
        near[top + 6 : bottom - 6, left + 6 : right - 6] = False
        assert drawn[(top + bottom) // 2, left - 4 : left + 6].any()
        assert drawn[top - 4 : top + 6, (left + right) // 2].any()
    assert not drawn[~near].any()


@pytest.mark.parametrize(
    ("probability", "shown"),
    [
        (0.0, "< 0.1 %"),
        (0.0004, "< 0.1 %"),
        (0.1234, "12.3 %"),
        (0.5, "50.0 %"),
        (0.9996, "> 99.9 %"),
        (1.0, "> 99.9 %"),
    ],
)
def test_percent(probability: float, shown: str) -> None:
    assert percent(probability) == shown


def test_page_shows_the_required_information() -> None:
    page = render(score())
    for text in (
        "Research use only. Not a medical device.",
        "12.3 %",
        "98.8 %",
        "No interval is available",
        "60-64 years",
        "female",
        "7 rounds at 3",
        "a1" * 32,
        "2021-03-04 at 03:15",
        "3000 mL",
        "0.6 s",
    ):
        assert text in page
    assert "flagged." not in page


def test_page_shows_levels_in_words_and_the_band() -> None:
    points = {"severe": {"rule_out": 0.08, "rule_in": 0.4}, "pcr_positive": {"rule_out": 0.2, "rule_in": 0.9}}
    told = replace(
        score(),
        model=description(operating_points=points, trained_on_synthetic_data=False),
        intervals={"severe": (0.081, 0.302)},
        saliency=MAP,
    )
    page = html.unescape(" ".join(render(told).split()))
    assert "Intermediate: between the release's thresholds for ruling out and ruling in (8.0 %, 40.0 %)." in page
    assert "High: at or above the release's threshold for ruling in (20.0 %, 90.0 %)." in page
    assert "95 % band 8.1 % to 30.2 %" in page
    assert "defines no operating points" not in page and "No interval" not in page
    assert "defines no operating points" in " ".join(render(score()).split())


def test_page_shows_lung_measures_by_side_and_third() -> None:
    scan = prepared()
    scan.image_hu[10:23, 10:40, 10:32] = -500
    page = render(replace(score(), burden=burden_of(scan)))
    rows = re.findall(r'<th scope="row">(Whole|Upper third|Middle third|Lower third)</th>(.*?)</tr>', page, re.DOTALL)
    cells = {name: re.findall(r"<td[^>]*>(.*?)</td>", row) for name, row in rows}
    assert [name for name, _ in rows] == ["Whole", "Upper third", "Middle third", "Lower third"]
    assert cells["Lower third"][2:] == ["100.0 %", "0.0 %", "0.0 %", "0.0 %"]
    assert cells["Upper third"] == ["0.0 %"] * 6


def test_saliency_overlay_can_be_faded_without_javascript() -> None:
    page = render(replace(score(), saliency=MAP))
    assert page.count('class="map"') == 3
    assert len(re.findall(r'<input type="radio" name="map"', page)) == 4
    assert "#map-off:checked ~ .views .map, #map-counted:checked ~ .views .map { opacity: 0; }" in page
    assert "Not a lesion contour" in page and "Severe course\n  (12.3 %)" in page


def test_saliency_overlay_is_at_the_correct_position() -> None:
    """The overlay is on the posterior part of the right lung, and the planes go through it."""
    axial, coronal, sagittal = views(prepared(), burden_of(prepared()), MAP)
    assert sagittal.title == "Sagittal, right lung"
    for view, (row, column) in ((axial, (0.7, 0.3)), (coronal, (0.6, 0.3)), (sagittal, (0.6, 0.7))):
        assert view.map_png is not None
        alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(view.map_png.split(",")[1]))))[..., 3]
        brightest = np.array(np.unravel_index(alpha.argmax(), alpha.shape)) / alpha.shape
        assert brightest == pytest.approx((row, column), abs=0.15), view.title
    assert all(view.map_png is None for view in views(prepared(), burden_of(prepared())))


def test_missing_saliency_map_is_explained() -> None:
    low = replace(score(), probabilities={"severe": 0.05, "pcr_positive": 0.02})
    page = " ".join(render(low).split())
    assert "No map of where the model looked: the probabilities are low" in page
    assert 'class="map"' not in page and 'id="map-faint"' not in page


def test_page_loads_no_external_resources() -> None:
    page, pictures = re.subn(r'src="data:image/png;base64,[A-Za-z0-9+/=]+"', "", render(replace(score(), saliency=MAP)))
    assert pictures == page.count("<img") == 9
    assert "default-src 'none'" in page
    assert not re.search(r"//|src=|href=|<script|<link|@import|url\(", page)


def test_synthetic_training_shows_a_warning() -> None:
    warned, other = (" ".join(render(score(synthetic=each)).split()) for each in (True, False))
    for words in ("not valid for patients", "trained on synthetic data"):
        assert words in warned and words not in other


def test_phantom_model_gives_no_verdict_for_a_patient() -> None:
    points = {"severe": {"rule_out": 0.5, "rule_in": 0.9}, "pcr_positive": {"rule_out": 0.2, "rule_in": 0.9}}
    model = description(operating_points=points, trained_on_synthetic_data=True)
    told = replace(score(), model=model, intervals={"severe": (0.05, 0.2)})
    page = " ".join(render(told).split())
    assert page.count('class="answer withheld"') == 2
    assert page.count("This model was trained on synthetic data. Its result is not valid for patients.") == 3
    assert "12.3 %" in page and "95 % band 5.0 % to 20.0 %" in page
    assert 'class="point"' not in page and "50.0 %" not in page
    assert not re.search(r"(Low|High|Intermediate|Uncertain):", page)
    assert "the probabilities are low" not in page
    phantom = " ".join(render(replace(told, is_phantom=True)).split())
    assert "Low: below the release's threshold" in html.unescape(phantom)
    assert 'class="answer withheld"' not in phantom
    assert phantom.count("Its result is not valid for patients.") == 1


def test_report_calls_a_band_across_a_threshold_uncertain() -> None:
    points = {"severe": {"rule_out": 0.15, "rule_in": 0.4}}
    model = description(operating_points=points, trained_on_synthetic_data=False)
    page = html.unescape(" ".join(render(replace(score(), model=model, intervals={"severe": (0.05, 0.2)})).split()))
    assert "Uncertain: the 95 % band crosses a threshold of the release" in page
    assert "Low:" not in page


def test_page_says_what_a_threshold_reached_and_why_one_is_missing() -> None:
    evidence = {"value": 0.93, "low": 0.84, "high": 0.99, "positives": 45, "negatives": 81, "sites": 3}
    points = {"severe": {point: {"threshold": at, "evidence": evidence} for point, at in POINTS.items()}}
    few = {"why": "too_few", "positives": 12, "negatives": 30, "sites": 1}
    missing = {"pcr_positive": {point: few for point in POINTS}}
    model = description(operating_points=points, missing_points=missing, trained_on_synthetic_data=False)
    page = html.unescape(" ".join(render(replace(score(), model=model)).split()))
    counts = "from 45 positive and 81 negative validation patients at 3 hospitals."
    assert f"To rule out: Sensitivity 0.93 (90 % interval 0.84 to 0.99) {counts}" in page
    assert f"To rule in: Specificity 0.93 (90 % interval 0.84 to 0.99) {counts}" in page
    why = "No operating point: 12 positive and 30 negative validation patients at 1 hospital"
    assert page.count(why) == 1  # the same for both thresholds
    assert page.count("No level is shown.") == 1


def test_page_says_that_an_earlier_version_recorded_no_counts() -> None:
    model = description(operating_points={"severe": POINTS}, trained_on_synthetic_data=False)
    page = html.unescape(" ".join(render(replace(score(), model=model)).split()))
    assert "The number of patients behind this threshold is not recorded." in page
    assert "The release defines no operating points." in page


def test_flags_are_shown_with_their_remedy() -> None:
    flagged = replace(score(), checks=(Check("slices", 52), Check("lungs_cut", "lowest", "", reasons.LUNGS_CUT)))
    page = render(flagged)
    assert "1 of 2 checks\n    is flagged." in page
    assert reasons.LUNGS_CUT.says in page
    assert reasons.LUNGS_CUT.remedy in page
    assert "W_LUNGS_CUT" in page


def test_names_are_escaped() -> None:
    page = render(score(study="<script>alert(1)</script>"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_report_is_written_to_a_new_folder_and_write_errors_are_reported(tmp_path: Path) -> None:
    page = write_report(score(), tmp_path / "new" / "out")
    assert page == tmp_path / "new" / "out" / "score.html"
    assert page.read_text(encoding="utf-8") == render(score())
    with pytest.raises(Refusal) as caught:
        write_report(score(), page)
    assert caught.value.code == "E_REPORT_WRITE"
    assert str(tmp_path) not in str(caught.value)
