"""The page of one score: a single HTML file that opens without a network and prints on one sheet of A4."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from models.refusal import Refusal
from pipeline import reasons
from pipeline.pages import page_environment
from pipeline.preprocess import Prepared
from pipeline.score import NOTICE, Score

PAGE = "score.html"
LUNG_WINDOW_HU = (-1350.0, 150.0)  # width 1500, level -600
TISSUE_ABOVE_HU = -500.0
AROUND_LUNGS_MM = 40.0
CONTOUR_RGB = (0, 200, 255)  # on neither end of the greys, and told apart by the colour-blind
_ENLARGED = 8  # pixels of the picture for each voxel
_CONTOUR_PIXELS = 2


@dataclass(frozen=True)
class View:
    """One plane through the scan as seen by a radiologist: the patient's right on the left of the picture.

    `letters`: at the left, right, top and bottom edge. `png`: data URI. `columns`, `rows`: size in voxels.
    """

    title: str
    letters: tuple[str, str, str, str]
    png: str
    columns: int
    rows: int


def write_report(score: Score, out: Path) -> Path:
    """Write the page into the folder `out`, which is made; returns its path.

    Raises Refusal E_REPORT_WRITE.
    """
    page = out / PAGE
    try:
        out.mkdir(parents=True, exist_ok=True)
        page.write_text(render(score), encoding="utf-8")
    except OSError as error:
        raise Refusal(reasons.REPORT_WRITE, private=str(error)) from error
    return page


def render(score: Score) -> str:
    """The page as text."""
    environment = page_environment()
    environment.filters["percent"] = percent
    return environment.get_template(PAGE).render(
        score=score,
        notice=NOTICE,
        views=views(score.prepared),
        flags=[check for check in score.checks if check.reason],
    )


def percent(probability: float) -> str:
    """In percent with one decimal; never 0 or 100, which no model can know."""
    if probability < 0.001:
        return "< 0.1 %"
    if probability > 0.999:
        return "> 99.9 %"
    return f"{probability * 100:.1f} %"


def views(prepared: Prepared) -> list[View]:
    """Axial, coronal and sagittal: of each direction the plane that cuts most lung, cropped to the lungs' surroundings.

    The plane through the middle would show the mediastinum on the sagittal view.
    """
    margin = round(AROUND_LUNGS_MM / prepared.spacing_mm)
    (box,) = ndimage.find_objects(prepared.lungs.astype(np.uint8))
    around = tuple(slice(max(0, s.start - margin), s.stop + margin) for s in box)
    hu, lungs = prepared.image_hu[around], prepared.lungs[around]
    up, back, left = (int(lungs.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))
    # The middle of the body, not of the lungs: one of them may be missing.
    middle = ndimage.center_of_mass(prepared.image_hu > TISSUE_ABOVE_HU)[2] - around[2].start
    side = "right" if left < middle else "left"
    # The working grid runs feet to head, front to back, right to left; pictures begin at the top.
    return [
        _view("Axial", ("R", "L", "A", "P"), hu[up], lungs[up]),
        _view("Coronal", ("R", "L", "H", "F"), hu[::-1, back], lungs[::-1, back]),
        _view(f"Sagittal, {side} lung", ("A", "P", "H", "F"), hu[::-1, :, left], lungs[::-1, :, left]),
    ]


def _view(title: str, letters: tuple[str, str, str, str], hu: NDArray[np.float32], lungs: NDArray[np.bool_]) -> View:
    """Draw one plane, rows from the top, columns from the left; voxels are cubes, so its aspect is right."""
    size = (hu.shape[1] * _ENLARGED, hu.shape[0] * _ENLARGED)
    smooth = np.asarray(Image.fromarray(hu).resize(size, Image.Resampling.BICUBIC))
    low, high = LUNG_WINDOW_HU
    grey = ((smooth - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    inside = np.asarray(Image.fromarray(lungs.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)) > 0.5
    picture = np.repeat(grey[..., None], 3, axis=2)
    picture[inside & ~ndimage.binary_erosion(inside, iterations=_CONTOUR_PIXELS)] = CONTOUR_RGB
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    png = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return View(title, letters, png, columns=hu.shape[1], rows=hu.shape[0])
