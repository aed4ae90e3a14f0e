"""Pictures of an answer's scan: volumes for the browser's viewer, and single slices drawn on the server.

Volumes are NIfTI files with correct affines; their axes point to the patient's left, back and head. Slices are in
radiological view, the patient's right on the left. Neither is for diagnosis: the resolution is reduced.

The server's main process draws slices and never imports torch; only `write_pictures`, in the scoring worker, does.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from math import ceil
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import StringConstraints, TypeAdapter
from scipy import ndimage

from models.refusal import Refusal
from pipeline.clinic.reasons import NO_SUCH_PICTURE, PICTURE_DAMAGED
from pipeline.imaging.volume import LUNG_WINDOW_HU, Volume, whole_hu
from pipeline.scoring.best_planes import best_planes
from pipeline.scoring.colormap import CONTOUR_RGB, OPACITY_RGB, heat_rgba, opacity_rgba

if TYPE_CHECKING:
    from pipeline.preprocessing.lesion_burden import Burden
    from pipeline.preprocessing.preprocess import Prepared
    from pipeline.scoring.score import Score

IMAGE, LUNGS, SALIENCY, OPACITIES = "image.nii.gz", "lungs.nii.gz", "saliency.nii.gz", "opacities.nii.gz"
LABELS = "labels.nii.gz"  # all that the table of the lungs depends on (`lung_labels`)
MOST_VOXELS = (200, 256, 256)  # slices, rows, columns: about 10 MB compressed, and enough for orientation
_GZIP = 31  # zlib's wbits for gzip. Only runs are compressed (Z_RLE): twice as fast as gzip's fastest, a tenth larger
_KEPT_VOLUMES = 8  # the volumes of two answers
GRID_PIXELS = 5  # of the picture under a mask that a reader corrects, for each side of a voxel

Plane = Literal["axial", "coronal", "sagittal"]
Overlay = Literal["none", "lungs", "saliency", "opacities", "opacity_outlines"]
# By plane: its axis in the stored volume, and the letters at its left, right, top and bottom edge.
PLANES: dict[Plane, tuple[int, tuple[str, str, str, str]]] = {
    "axial": (2, ("R", "L", "A", "P")),
    "coronal": (1, ("R", "L", "H", "F")),
    "sagittal": (0, ("A", "P", "H", "F")),
}

WINDOWS_HU: dict[str, tuple[float, float]] = {
    "lung": LUNG_WINDOW_HU,
    "soft": (-160.0, 240.0),
    "bone": (-450.0, 1050.0),
}
_reading = Lock()


# For the API; see `window_hu`.
Window = Annotated[str, StringConstraints(pattern=rf"^({'|'.join(WINDOWS_HU)}|-?[0-9]{{1,5}},-?[0-9]{{1,5}})$")]
_WINDOW: TypeAdapter[str] = TypeAdapter(Window)


def window_hu(window: str) -> tuple[float, float]:
    """Return the ends of a window in HU, at least 1 apart: a name of WINDOWS_HU, or two ends, "-800,-100".

    Raises ValueError.
    """
    if window in WINDOWS_HU:
        return WINDOWS_HU[window]
    low, high = sorted(map(float, _WINDOW.validate_python(window).split(",")))
    return low, max(high, low + 1.0)


def write_pictures(score: "Score", folder: Path) -> None:
    """Write the scan in HU (int16), lungs (0 or 1), dense voxels (`Opacity`), labels, and any saliency (0 to 255).

    Raises OSError if the disk is full.
    """
    save_volume(*_coarser(score.volume), folder / IMAGE)
    write_lungs(score.burden, score.prepared, folder)
    save_volume(score.burden.labels, score.prepared.affine, folder / LABELS)
    if score.saliency is not None:
        save_volume(np.rint(score.saliency * 255).astype(np.uint8), score.prepared.tensor_affine, folder / SALIENCY)


def write_lungs(found: "Burden", prepared: "Prepared", folder: Path) -> None:
    """Write the lungs (0 or 1) and the dense voxels (`Opacity`). Raises OSError."""
    save_volume(found.found.lungs.astype(np.uint8), prepared.affine, folder / LUNGS)
    save_volume(found.opacities, prepared.affine, folder / OPACITIES)


def write_scan(volume: Volume, folder: Path) -> None:
    """Write only the scan, for a scan without a score; `volume`: as it was read. Raises OSError."""
    from pipeline.preprocessing.preprocess import orient

    save_volume(*_coarser(orient(volume)), folder / IMAGE)


def planes(folder: Path) -> dict[Plane, dict[str, Any]]:
    """Describe each plane: count of slices, spacing_mm between them, rows and columns of a picture, letters, start.

    `start` is the first slice to show: through the maximum of the saliency, else that with the most dense lung (with
    the most lung, if hardly any is dense), else the middle slice. Raises Refusal: E_NO_SUCH_PICTURE, E_PICTURE_DAMAGED.
    """
    volume, affine = read_volume(folder / IMAGE)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    start = _start(folder)
    answer: dict[Plane, dict[str, Any]] = {}
    for plane, (axis, letters) in PLANES.items():
        columns, rows = _picture_size(volume.shape, spacing_mm, axis)
        answer[plane] = {
            "count": volume.shape[axis],
            "spacing_mm": round(float(spacing_mm[axis]), 3),
            "rows": rows,
            "columns": columns,
            "letters": letters,
            "start": start[axis],
        }
    return answer


def slice_png(
    folder: Path,
    plane: Plane,
    index: int,
    overlay: Overlay = "none",
    window: str = "lung",
    masks: Path | None = None,
) -> bytes:
    """Draw one slice as PNG, with square pixels.

    `index` counts from the feet, the front or the right. `overlay`: the contour of the lungs, the voxels that are
    counted as dense or their contours, or the saliency, in colours. To fade it, blend this picture over one without
    overlay. `window`: see `window_hu`. `masks`: the folder of other lungs and dense voxels.

    Raises Refusal: E_NO_SUCH_PICTURE, E_PICTURE_DAMAGED.
    """
    overlays = () if overlay == "none" else (overlay,)
    return _png(draw_slice(folder, plane, index, overlays, window, masks))


def grid_slice_png(folder: Path, index: int, window: str = "lung") -> bytes:
    """Draw the scan where the axial slice `index` of the mask's grid lies, GRID_PIXELS for each side of a voxel.

    The first row is the front, the first column the patient's right.

    Raises Refusal: E_NO_SUCH_PICTURE, E_PICTURE_DAMAGED.
    """
    volume, affine = read_volume(folder / IMAGE)
    grid, grid_affine = read_volume(folder / LABELS)
    if not 0 <= index < grid.shape[2]:
        raise Refusal(NO_SUCH_PICTURE)
    columns, rows = ((np.arange(size * GRID_PIXELS) + 0.5) / GRID_PIXELS - 0.5 for size in grid.shape[:2])
    plane = np.meshgrid(columns, rows, [float(index)], indexing="ij")
    voxels = np.stack([*plane, np.ones_like(plane[0])])
    places = np.tensordot((np.linalg.inv(affine) @ grid_affine)[:3], voxels, axes=1)
    hu = ndimage.map_coordinates(volume, places, output=np.float32, order=1, mode="nearest").squeeze(2).T
    return _png(_grey(hu, window).astype(np.uint8))


def _png(picture: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _grey(hu: NDArray[np.float32], window: str) -> NDArray[np.float32]:
    low, high = window_hu(window)
    return ((hu - low) / (high - low) * 255).clip(0, 255)


def draw_slice(
    folder: Path,
    plane: Plane,
    index: int,
    overlays: Iterable[Overlay] = (),
    window: str = "lung",
    masks: Path | None = None,
) -> NDArray[np.uint8]:
    """Draw the slice as RGB, shape (rows, columns, 3), with its overlays in the given order; `masks`: see `slice_png`.

    Raises Refusal: E_NO_SUCH_PICTURE, E_PICTURE_DAMAGED.
    """
    volume, affine = read_volume(folder / IMAGE)
    axis, _ = PLANES[plane]
    if not 0 <= index < volume.shape[axis]:
        raise Refusal(NO_SUCH_PICTURE)
    size = _picture_size(volume.shape, np.linalg.norm(affine[:3, :3], axis=0), axis)
    cut = np.moveaxis(volume, axis, 0)[index]  # `take` would copy the whole volume
    hu = _upright(cut.astype(np.float32), axis, size)
    picture = np.repeat(_grey(hu, window)[..., None], 3, axis=2)
    for overlay in overlays:
        name, draw, order = _DRAWN[overlay]
        over, over_affine = read_volume((masks if masks and name in (LUNGS, OPACITIES) else folder) / name)
        cut = _cut(over, np.linalg.inv(over_affine) @ affine, volume.shape, axis, index, order)
        picture = draw(picture, _upright(cut, axis, size, order))
    return picture.astype(np.uint8)


def _coarser(volume: Volume) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Average over blocks of voxels, so that no axis is longer than MOST_VOXELS; incomplete blocks are cut off."""
    from pipeline.preprocessing.area_resample import area_means
    from pipeline.preprocessing.preprocess import resampled_affine

    block = [ceil(size / most) for size, most in zip(volume.hu.shape, MOST_VOXELS, strict=True)]
    shape = [size // step for size, step in zip(volume.hu.shape, block, strict=True)]
    used = [size * step for size, step in zip(shape, block, strict=True)]
    hu = area_means(volume.hu[tuple(map(slice, used))], shape)
    return whole_hu(hu.numpy()), resampled_affine(volume.affine, used, shape)


def save_volume(voxels: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    """Write a gzipped NIfTI file; `voxels`: (slices, rows, columns), which is the reverse of NIfTI's order."""
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    image.set_sform(image.affine, code="scanner")
    image.header.set_xyzt_units("mm")
    packer = zlib.compressobj(level=1, wbits=_GZIP, strategy=zlib.Z_RLE)
    path.write_bytes(packer.compress(image.to_bytes()) + packer.flush())


def read_volume(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return voxels, shape (columns, rows, slices), and affine.

    Raises Refusal: E_NO_SUCH_PICTURE, or E_PICTURE_DAMAGED for a file that is not as it was written.
    """
    with _reading:  # the three planes are requested at once: only one of them reads the file
        try:
            return _load(path)
        except FileNotFoundError as error:
            raise Refusal(NO_SUCH_PICTURE) from error
        except Exception as error:  # nibabel raises many kinds of exceptions
            raise Refusal(PICTURE_DAMAGED, private=f"{path}: {error!r}") from error


@lru_cache(_KEPT_VOLUMES)
def _load(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    # From a path, nibabel stops reading before gzip's checksum: a damaged file would be shown as if it were whole.
    image = nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    return np.asanyarray(image.dataobj), image.affine


def _start(folder: Path) -> list[int]:
    volume, affine = read_volume(folder / IMAGE)
    if not (folder / LUNGS).is_file():
        return [size // 2 for size in volume.shape]
    if (folder / SALIENCY).is_file():
        over, over_affine = read_volume(folder / SALIENCY)
        voxel = np.array(np.unravel_index(over.argmax(), over.shape))
    else:
        over, over_affine = read_volume(folder / LUNGS)
        has_dense = (folder / OPACITIES).is_file()  # answers of earlier versions do not
        dense = read_volume(folder / OPACITIES)[0] if has_dense else np.zeros_like(over)
        voxel = np.array(best_planes(over, dense))
    found = np.rint(np.linalg.inv(affine) @ over_affine @ [*voxel, 1.0])[:3]
    return np.clip(found, 0, np.array(volume.shape) - 1).astype(int).tolist()


def _picture_size(shape: tuple[int, ...], spacing_mm: NDArray[np.float64], axis: int) -> tuple[int, int]:
    """Return columns and rows of a plane's picture with square pixels of the smallest spacing."""
    across, down = (a for a in range(3) if a != axis)
    least = spacing_mm.min()
    return round(shape[across] * spacing_mm[across] / least), round(shape[down] * spacing_mm[down] / least)


def _upright(cut: NDArray[np.float32], axis: int, size: tuple[int, int], order: int = 1) -> NDArray[np.float32]:
    """Resize a cut and orient its rows from the top: the front on top in axial slices, else the head."""
    rows = cut.T if axis == 2 else cut.T[::-1]
    smooth = Image.Resampling.BILINEAR if order else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(rows)).resize(size, smooth))


def _cut(
    over: NDArray[np.uint8], to_over: NDArray[np.float64], shape: tuple[int, ...], axis: int, index: int, order: int
) -> NDArray[np.float32]:
    """Sample the overlay at the image's slice `index`; `to_over` maps the image's voxels to the overlay's.

    `order`: 1 interpolates, 0 takes the nearest value.
    """
    grid = [np.array([index]) if a == axis else np.arange(size) for a, size in enumerate(shape)]
    voxels = np.stack([*np.meshgrid(*grid, indexing="ij"), np.ones([len(each) for each in grid])])
    places = np.tensordot(to_over[:3], voxels, axes=1)
    return ndimage.map_coordinates(over, places, output=np.float32, order=order).squeeze(axis)


def _draw_lungs(picture: NDArray[np.float32], lungs: NDArray[np.float32]) -> NDArray[np.float32]:
    inside = lungs > 0.5
    drawn = picture.copy()
    drawn[inside & ~ndimage.binary_erosion(inside)] = CONTOUR_RGB
    return drawn


def _draw_heat(picture: NDArray[np.float32], saliency: NDArray[np.float32]) -> NDArray[np.float32]:
    return laid_over(picture, saliency / np.float32(255))


def _draw_opacities(picture: NDArray[np.float32], opacities: NDArray[np.float32]) -> NDArray[np.float32]:
    return _blended(picture, opacity_rgba(np.rint(opacities).astype(np.uint8)))


def _draw_outlines(picture: NDArray[np.float32], opacities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw a contour, one pixel wide, inside the border of each density's voxels."""
    classes = np.rint(opacities).astype(np.uint8)
    drawn = picture.copy()
    for opacity, colour in OPACITY_RGB.items():
        inside = classes == opacity
        drawn[inside & ~ndimage.binary_erosion(inside)] = colour
    return drawn


def laid_over(picture: NDArray[np.float32], height: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blend a map with values from 0 to 1 over a picture, in colours that are more opaque for higher values."""
    return _blended(picture, heat_rgba(height))


def _blended(picture: NDArray[np.float32], rgba: NDArray[np.float64]) -> NDArray[np.float32]:
    over = rgba.astype(np.float32)
    colours, opacity = over[..., :3], over[..., 3:]
    return picture * (1 - opacity) + colours * opacity


# By overlay: its file, how it is drawn, and the order of interpolation.
_DRAWN: dict[str, tuple[str, Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]], int]] = {
    "lungs": (LUNGS, _draw_lungs, 1),
    "saliency": (SALIENCY, _draw_heat, 1),
    "opacities": (OPACITIES, _draw_opacities, 0),
    "opacity_outlines": (OPACITIES, _draw_outlines, 0),
}
