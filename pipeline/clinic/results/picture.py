"""The picture of one answer: axial slices through the lungs, with the saliency map if there is one.

It is a secondary capture (DICOM PS3.3, A.8), not a segmentation: every viewer shows it, it contains its probability and
caveats wherever it is copied, and its colours cannot be mistaken for the contour of a lesion, as a segment could. It
contains no patient's name.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.clinic.corrected_mask import reader_masks
from pipeline.clinic.pictures import IMAGE, LUNGS, SALIENCY, Overlay, draw_slice, laid_over, read_volume
from pipeline.clinic.records import Answer
from pipeline.clinic.results import identity
from pipeline.clinic.results.source import Source
from pipeline.clinic.review import are_lungs_usable, decision_text, reviewed_levels
from pipeline.scoring.verdict import percent

SERIES_NUMBER, VERIFIED_NUMBER = 902, 912
DESCRIPTION = "fedthorax UNVERIFIED picture, research use only"
VERIFIED_DESCRIPTION = "fedthorax verified picture, research use only"
ROWS, COLUMNS = 3, 4  # of slices
AROUND_LUNGS_MM = 25.0
# The layout, in pixels: text lines above and below the slices, gaps around each slice, the colour bar at the right.
GAP, LINE = 12, 26
HEAD_LINES = 3
BAR = 110
_TILE = 280  # the longer side of a slice
_TEXT = 17
_INK, _PAPER = (235, 235, 235), (0, 0, 0)
_FONT = ImageFont.load_default(_TEXT)
_NAMES = {
    "severe": "intubation or death within 30 days (if PCR positive)",
    "pcr_positive": "a positive PCR for SARS-CoV-2",
}


def picture(answer: Answer, source: Source, folder: Path) -> Dataset:
    """Create a colour secondary capture in the source's study, from the pictures in the answer's folder."""
    made: Dataset = SCImage.from_ref_dataset(
        source.header,
        pixel_array=draw(answer, folder),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **identity.series(
            answer,
            "picture",
            VERIFIED_NUMBER if answer.decision else SERIES_NUMBER,
            VERIFIED_DESCRIPTION if answer.decision else DESCRIPTION,
        ),
    )
    made.copy_patient_and_study_information(source.header)
    made.BodyPartExamined = "CHEST"
    made.BurnedInAnnotation = "NO"  # no text identifies the patient
    identity.name_algorithm(made, answer)
    identity.sign(made, answer)
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = made.ContentDate, made.ContentTime
    return made


def draw(answer: Answer, folder: Path) -> NDArray[np.uint8]:
    """Draw the picture as RGB, shape (rows, columns, 3)."""
    has_map = (folder / SALIENCY).is_file()
    masks = reader_masks(answer)
    slices, crop = choose_slices(folder, masks)
    outlines: tuple[Overlay, ...] = ("lungs",) if are_lungs_usable(answer) else ()
    overlays: tuple[Overlay, ...] = ("saliency", *outlines) if has_map else outlines
    foot = _foot(answer)
    tiles = [_crop(draw_slice(folder, "axial", index, overlays, masks=masks), crop) for index, _ in slices]
    scale = _TILE / max(tiles[0].size)
    width, height = (round(side * scale) for side in tiles[0].size)
    top, across, down = HEAD_LINES * LINE + GAP, COLUMNS * (width + GAP), ROWS * (height + GAP)
    bar = BAR if has_map else 0
    canvas = Image.new("RGB", (GAP + across + bar, top + down + len(foot) * LINE + GAP))
    pen = ImageDraw.Draw(canvas)
    for place, (tile, (_, height_mm)) in enumerate(zip(tiles, slices, strict=True)):
        row, column = divmod(place, COLUMNS)
        left, upper = GAP + column * (width + GAP), top + row * (height + GAP)
        canvas.paste(tile.resize((width, height), Image.Resampling.BILINEAR), (left, upper))
        _mark(pen, (left, upper, left + width, upper + height), f"z {height_mm:.0f} mm")
    if has_map:
        _draw_bar(canvas, pen, (GAP + across, top, GAP + across + BAR // 4, top + down - GAP))
    for number, line in enumerate(heading(answer, has_map=has_map)):
        pen.text((GAP, GAP // 2 + number * LINE), line, _INK, _FONT)
    for number, line in enumerate(foot):
        pen.text((GAP, top + down + number * LINE), line, _INK, _FONT)
    return np.asarray(canvas)


def choose_slices(folder: Path, masks: Path | None = None) -> tuple[list[tuple[int, float]], NDArray[np.float64]]:
    """Choose slices from the top of the lungs to their base, each with its DICOM z in mm, and the crop.

    The slice through the maximum of the saliency replaces the nearest one. The crop contains the lungs and a margin:
    left, upper, right and lower edge, as shares of a slice. `masks`: the folder of other lungs.
    """
    (image, affine), (lungs, lungs_affine) = map(read_volume, (folder / IMAGE, (masks or folder) / LUNGS))
    ends = np.argwhere(lungs > 0)
    low, high = _moved(np.array([ends.min(axis=0), ends.max(axis=0)]), lungs_affine, affine)
    margin = AROUND_LUNGS_MM / np.linalg.norm(affine[:3, :3], axis=0)
    crop = np.clip(np.array([low - margin, high + margin + 1])[:, :2] / image.shape[:2], 0, 1)
    planes = np.linspace(high[2], low[2], ROWS * COLUMNS + 2)[1:-1]
    if (folder / SALIENCY).is_file():
        saliency, saliency_affine = read_volume(folder / SALIENCY)
        (peak,) = _moved(np.array([np.unravel_index(saliency.argmax(), saliency.shape)]), saliency_affine, affine)
        planes[np.abs(planes - peak[2]).argmin()] = peak[2]
    indices = planes.round().clip(0, image.shape[2] - 1).astype(int)
    return [(int(index), float((affine @ [0, 0, index, 1])[2])) for index in indices], crop.ravel()


def _moved(voxels: NDArray[np.int64], of: NDArray[np.float64], to: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert voxel indices, shape (n, 3), of a volume with the affine `of` to those of one with the affine `to`."""
    return nib.affines.apply_affine(np.linalg.inv(to) @ of, voxels)


def _crop(drawn: NDArray[np.uint8], crop: NDArray[np.float64]) -> Image.Image:
    rows, columns = drawn.shape[:2]
    left, upper, right, lower = (crop * [columns, rows, columns, rows]).round().astype(int).tolist()
    return Image.fromarray(drawn[upper:lower, left:right])


def _mark(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], height: str) -> None:
    """Draw the letters of the patient's right and left, and the height of the slice."""
    left, upper, right, lower = box
    middle = (upper + lower) // 2
    for place, text, anchor in (
        ((left + 4, middle), "R", "lm"),
        ((right - 4, middle), "L", "rm"),
        ((left + 4, lower - 4), height, "ls"),
    ):
        pen.text(place, text, _INK, _FONT, anchor=anchor, stroke_width=2, stroke_fill=_PAPER)


def _draw_bar(canvas: Image.Image, pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    """Draw the colour bar over black, which is the grey value of air."""
    left, upper, right, lower = box
    height = np.repeat(np.linspace(1, 0, lower - upper, dtype=np.float32)[:, None], right - left, axis=1)
    colours = laid_over(np.zeros((*height.shape, 3), dtype=np.float32), height)
    canvas.paste(Image.fromarray(colours.astype(np.uint8)), (left, upper))
    for share in (0, 25, 50, 75, 100):
        at = lower - (lower - upper) * share // 100
        anchor = "ls" if share == 0 else "lt" if share == 100 else "lm"
        pen.text((right + 6, at), f"{share} %", _INK, _FONT, anchor=anchor)


def heading(answer: Answer, *, has_map: bool) -> list[str]:
    """Return the lines above the slices: each label's probability, or why it has none, and what the colours mean."""
    saliency = answer.score.get("saliency") or {}
    explained = saliency.get("label") if has_map else None
    labels = sorted(answer.score["probability"], key=lambda label: (label != explained, label != "severe"))
    probabilities = [f"Probability of {_NAMES[label]}: {_said(answer, label)}" for label in labels]
    probabilities += [f"{_NAMES[label]}: {why}" for label, why in (answer.score.get("no_number") or {}).items()]
    drawn = "Lungs outlined, corrected by hand." if reader_masks(answer) else "Lungs outlined."
    outlined = drawn if are_lungs_usable(answer) else "The outline of the lungs is not usable."
    if has_map:
        shown = "where the model looked for the first, in percent of this scan's own maximum; not a lesion contour"
        return [*probabilities, f"Colours: {shown}. {outlined}"]
    return [*probabilities, f"No map: {saliency.get('why_not') or 'none was made'}. {outlined}"]


def _said(answer: Answer, label: str) -> str:
    """Format the probability, with its band and level if they exist."""
    score = answer.score
    band, level = (score.get("interval") or {}).get(label), reviewed_levels(answer).get(label)
    within = f" (95 % band {percent(band[0])} to {percent(band[1])})" if band else ""
    by_reader = " set by the reader" if answer.decision and label in answer.decision.correction.levels else ""
    return f"{percent(score['probability'][label])}{within}" + (f", level {level}{by_reader}" if level else "")


def _foot(answer: Answer) -> list[str]:
    synthetic = " Trained only on synthetic data: not valid for patients." if _is_synthetic(answer) else ""
    model = f"{answer.model_name[:60]}, SHA-256 {answer.model_sha256[:16]}, {answer.score['scored_at']}"
    decided = decision_text(answer, with_comment=False)
    verified = [decided] if decided else []
    unverified = "" if decided else " Nobody has verified this."
    return [f"{answer.score['notice']}{unverified}{synthetic}", *verified, f"Model: {model}"]


def _is_synthetic(answer: Answer) -> bool:
    return bool(answer.score["trained_on_synthetic_data"])
