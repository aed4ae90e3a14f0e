"""Writes the page of one scan: a single HTML file that opens without a network and prints on one A4 sheet.

A scan without a score has a page too: the lungs and their dense parts need no model.
"""

import base64
import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from models.refusal import Refusal
from pipeline.imaging.volume import LUNG_WINDOW_HU
from pipeline.preprocessing.lesion_burden import EXTERNAL_MASK, PARTS, SIDES, Burden, middle_of_body
from pipeline.preprocessing.opacity import HEALTHY_DENSE
from pipeline.preprocessing.preprocess import Prepared, resample
from pipeline.scoring import reasons
from pipeline.scoring.best_planes import best_planes, strongest_planes
from pipeline.scoring.colormap import CONTOUR_RGB, OPACITY_RGB, heat_rgba, opacity_rgba
from pipeline.scoring.lungs_alone import LungsAlone
from pipeline.scoring.score import NOTICE, Score
from pipeline.scoring.verdict import SYNTHETIC, percent
from pipeline.system.templating import page_environment

PAGE, UNSCORED_PAGE = "score.html", "lungs.html"
AROUND_LUNGS_MM = 40.0
_ENLARGED = 8  # pixels of the picture for each voxel
_CONTOUR_PIXELS = 2


@dataclass(frozen=True)
class View:
    """One plane through the scan in radiological orientation: the patient's right is on the left of the picture.

    `letters`: at the left, right, top and bottom edge. `png`: data URI; `counted_png`: overlay with the voxels that are
    counted as dense; `map_png`: overlay with the saliency. `columns`, `rows`: size in voxels.
    """

    title: str
    letters: tuple[str, str, str, str]
    png: str
    counted_png: str
    map_png: str | None
    columns: int
    rows: int


def write_report(score: Score, out: Path) -> Path:
    """Write the page of a score into the folder `out`, which is created if needed, and return its path.

    Raises Refusal E_REPORT_WRITE.
    """
    return _write(render(score), out / PAGE)


def write_unscored_report(lungs: LungsAlone, refusal: Refusal, out: Path) -> Path:
    """Write the page of a scan without a score into the folder `out`, and return its path; `refusal`: why.

    Raises Refusal E_REPORT_WRITE.
    """
    return _write(render_unscored(lungs, refusal), out / UNSCORED_PAGE)


def _write(text: str, page: Path) -> Path:
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refusal(reasons.REPORT_WRITE, private=str(error)) from error
    return page


def render(score: Score) -> str:
    """Return the page of a score as text."""
    return _rendered(
        PAGE,
        score.burden,
        views(score.prepared, score.burden, score.saliency),
        score=score,
        said=score.to_json(),
        synthetic=SYNTHETIC if score.model.trained_on_synthetic_data else None,
        flags=[check for check in score.checks if check.reason],
    )


def render_unscored(lungs: LungsAlone, refusal: Refusal) -> str:
    """Return the page of a scan without a score as text."""
    shown = views(lungs.prepared, lungs.burden)
    spacing_mm = lungs.prepared.spacing_mm
    about = {"refusal": refusal, "spacing_mm": spacing_mm, "made_at": datetime.now().astimezone()}
    return _rendered(UNSCORED_PAGE, lungs.burden, shown, **about, checks=lungs.checks, flags=lungs.flags)


def _rendered(template: str, lungs: Burden, shown: list[View], **values: Any) -> str:
    environment = page_environment()
    environment.filters |= {"percent": percent, "share": share, "capitalise": _capitalised}
    return environment.get_template(template).render(
        lungs=lungs,
        is_external=lungs.lungs_from == EXTERNAL_MASK,
        views=shown,
        notice=NOTICE,
        parts=PARTS,
        sides=SIDES,
        healthy=HEALTHY_DENSE,
        colours=OPACITY_RGB,
        **values,
    )


def _capitalised(sentence: str) -> str:
    """Return the sentence with its first letter large, and the rest, such as "HU", as it was."""
    return sentence[:1].upper() + sentence[1:]


def share(of_volume: float | None) -> str:
    """Format a share in percent with one decimal; a dash if there is no volume."""
    return "–" if of_volume is None else f"{of_volume * 100:.1f} %"


def views(prepared: Prepared, found: Burden, saliency: NDArray[np.float32] | None = None) -> list[View]:
    """Make the axial, coronal and sagittal views, cropped to the surroundings of the lungs.

    Each view is the plane with the strongest saliency; without saliency, the plane with the most dense lung, or with
    the most lung where hardly any is dense. The middle plane would show the mediastinum in the sagittal view.
    """
    margin = round(AROUND_LUNGS_MM / prepared.spacing_mm)
    outline = found.found.lungs if found.found.lungs.any() else prepared.lungs
    (box,) = ndimage.find_objects(outline.astype(np.uint8))
    around = tuple(slice(max(0, s.start - margin), s.stop + margin) for s in box)
    hu, lungs, dense = prepared.image_hu[around], outline[around], found.opacities[around]
    heat = None if saliency is None else _on_working_grid(saliency, prepared)[around]
    up, back, left = best_planes(lungs, dense) if heat is None else strongest_planes(heat)
    side = "right" if left < middle_of_body(prepared) - around[2].start else "left"
    # The axes of the working grid point to the head, the back and the left; pictures begin at the top.
    planes = (
        ("Axial", ("R", "L", "A", "P"), np.s_[up]),
        ("Coronal", ("R", "L", "H", "F"), np.s_[::-1, back]),
        (f"Sagittal, {side} lung", ("A", "P", "H", "F"), np.s_[::-1, :, left]),
    )
    return [
        _view(title, letters, hu[plane], lungs[plane], dense[plane], None if heat is None else heat[plane])
        for title, letters, plane in planes
    ]


def _on_working_grid(saliency: NDArray[np.float32], prepared: Prepared) -> NDArray[np.float32]:
    """Resample from the tensor's grid to its place in the working grid; 0 elsewhere."""
    heat = np.zeros_like(prepared.image_hu)
    shape = heat[prepared.box].shape
    heat[prepared.box] = resample(torch.from_numpy(saliency), shape).numpy()
    return heat


def _view(
    title: str,
    letters: tuple[str, str, str, str],
    hu: NDArray[np.float32],
    lungs: NDArray[np.bool_],
    dense: NDArray[np.uint8],
    heat: NDArray[np.float32] | None,
) -> View:
    """Draw one plane, rows from the top, columns from the left; voxels are cubes, so the aspect ratio is right."""
    size = (hu.shape[1] * _ENLARGED, hu.shape[0] * _ENLARGED)
    smooth = np.asarray(Image.fromarray(hu).resize(size, Image.Resampling.BICUBIC))
    low, high = LUNG_WINDOW_HU
    grey = ((smooth - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    inside = np.asarray(Image.fromarray(lungs.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)) > 0.5
    picture = np.repeat(grey[..., None], 3, axis=2)
    picture[inside & ~ndimage.binary_erosion(inside, iterations=_CONTOUR_PIXELS)] = CONTOUR_RGB
    return View(
        title,
        letters,
        _png(picture),
        _counted(dense, size),
        None if heat is None else _map(heat, size),
        columns=hu.shape[1],
        rows=hu.shape[0],
    )


def _counted(dense: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """Draw the counted voxels as they are, without smoothing: each square is a voxel of the table."""
    rgba = opacity_rgba(np.asarray(Image.fromarray(np.ascontiguousarray(dense)).resize(size, Image.Resampling.NEAREST)))
    rgba[..., 3] *= 255
    return _png(np.rint(rgba).astype(np.uint8))


def _map(heat: NDArray[np.float32], size: tuple[int, int]) -> str:
    smooth = np.asarray(Image.fromarray(np.ascontiguousarray(heat)).resize(size, Image.Resampling.BILINEAR))
    rgba = heat_rgba(smooth.clip(0, 1))
    rgba[..., 3] *= 255
    return _png(np.rint(rgba).astype(np.uint8))


def _png(picture: NDArray[np.uint8]) -> str:
    """Encode a picture as a data URI."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
