"""Finds lungs, airways, vessels and dense lung with the segmenter of this package; see `models.lung_segmenter`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from models.lung_segmenter import MULTIPLE, SPACING_MM, LungSegmenter, Region, load_segmenter
from pipeline.preprocessing.field_of_view import outside_pieces
from pipeline.preprocessing.lungs import AIR_BELOW_HU, bounding_box, largest_piece

AIR_HU = -1024.0
BODY_ABOVE_HU, BODY_MARGIN_MM = -300.0, 12.0
LEAST_AIR = 0.02  # share of the lungs that is air
SIDES_AROUND = 3  # of front, back, right and left, on which the body lies around air inside it
MAY_BE_LUNG, SURE_LUNG = 0.05, 0.25  # probability of one side; where both sides have 0.25, the voxel is lung
PART_OF_LARGEST, BOX_MARGIN = 0.1, 2  # pieces that are at least so large are looked at, and coarse voxels around them
ANOTHER_LUNG = 0.5  # of the size of the largest lung, from which on a further piece is a lung too
SIDES = (Region.RIGHT_LUNG, Region.LEFT_LUNG)


@dataclass(frozen=True)
class LungRegions:
    """What was found in one scan.

    `regions`: uint8, values of `Region`; each lung is one piece without holes. `tissues`: uint8, values of `Tissue`,
    which hold inside the lungs and are `Tissue.PARENCHYMA` elsewhere. Shapes as the scan's. `chances`: float32, shape
    (2, slices, rows, columns), probability of right and left lung, for outlines that are smooth on a finer grid.
    """

    regions: NDArray[np.uint8]
    tissues: NDArray[np.uint8]
    chances: NDArray[np.float32]

    @property
    def lungs(self) -> NDArray[np.bool_]:
        """Both lungs, aerated or diseased, with their vessels."""
        return are_lungs(self.regions)

    @classmethod
    def of_mask(cls, lungs: NDArray[np.bool_], middle: float) -> "LungRegions":
        """Return regions from a mask of both lungs alone; columns up to `middle` are the right lung."""
        is_left = np.arange(lungs.shape[2]) > middle
        regions = np.where(is_left, np.uint8(Region.LEFT_LUNG), np.uint8(Region.RIGHT_LUNG)) * lungs
        return cls.of_labels(regions.astype(np.uint8), np.zeros(lungs.shape, np.uint8))

    @classmethod
    def of_labels(cls, regions: NDArray[np.uint8], tissues: NDArray[np.uint8]) -> "LungRegions":
        """Return regions whose labels are certain."""
        return cls(regions, tissues, np.stack([regions == side for side in SIDES]).astype(np.float32))

    def lungs_on(self, shape: Sequence[int]) -> NDArray[np.uint8]:
        """Return the lungs on another grid with the same outer faces: uint8, 1 in the right and 2 in the left one."""
        answer = np.zeros(tuple(shape), np.uint8)
        planes = torch.from_numpy(self.chances)[None]
        heights = _places(self.chances.shape[1], shape[0])
        for index, (low, share) in enumerate(heights):  # slice by slice: a volume of floats would take a gigabyte
            high = min(low + 1, self.chances.shape[1] - 1)
            plane = (1 - share) * planes[:, :, low] + share * planes[:, :, high]
            fine = F.interpolate(plane, size=tuple(shape[1:]), mode="bilinear")[0].numpy()
            answer[index] = np.where(fine.sum(axis=0) > 0.5, np.where(fine[0] >= fine[1], 1, 2), 0)
        return answer


def are_lungs(regions: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which voxels are lung; `numpy.isin` takes fifteen times as long."""
    right, left = map(int, SIDES)  # numpy compares a member of an enum in int64
    return np.asarray((regions == right) | (regions == left))


def find_regions(hu: NDArray[np.float32], spacing_mm: float, network: LungSegmenter | None = None) -> LungRegions:
    """Segment a chest CT.

    Parameters
    ----------
    hu : NDArray
        Shape (slices, rows, columns), axes to the head, the back and the patient's left, cubic voxels.
    spacing_mm : float
        Length of a voxel's side.
    network : LungSegmenter or None
        The segmenter; by default the one of this package.

    Returns
    -------
    LungRegions
        On the grid of `hu`. A scan without lungs has none.
    """
    regions, tissues = np.zeros(hu.shape, np.uint8), np.zeros(hu.shape, np.uint8)  # background, parenchyma
    found = LungRegions(regions, tissues, np.zeros((len(SIDES), *hu.shape), np.float32))
    body = largest_piece(hu > BODY_ABOVE_HU)
    if body.any():
        # The air around a patient takes a third of many scans, and noise in it can look like lung.
        _, *in_plane = bounding_box(body, round(BODY_MARGIN_MM / spacing_mm))
        box = slice(0, hu.shape[0]), *in_plane
        inner = LungRegions(regions[box], tissues[box], found.chances[(slice(None), *box)])
        _write_regions(inner, np.ascontiguousarray(hu[box]), body[box], spacing_mm, network or load_segmenter())
    return found


def _write_regions(
    into: LungRegions, hu: NDArray[np.float32], body: NDArray[np.bool_], spacing_mm: float, network: LungSegmenter
) -> None:
    """Segment a box around the body into views of the answer, which is background so far."""
    coarse, coarse_tissues = _logits(torch.from_numpy(hu), spacing_mm, network)
    regions = _nearest(_highest(coarse.numpy()), hu.shape)
    regions[are_lungs(regions)] = Region.BACKGROUND
    into.regions[:] = regions
    box = _around_lungs(coarse, hu.shape)
    if box is None:
        return
    # Only there are the answers interpolated to the grid of `hu`.
    region_logits = _within(coarse, hu.shape, box)
    chances = region_logits.softmax(0)
    found = _highest(region_logits.numpy())
    near = _lungs_in(hu[box], _air_outside(hu, body, box, are_lungs(found)), found, chances)
    into.regions[box] = near
    inside = are_lungs(near)
    into.tissues[box][inside] = _highest(_within(coarse_tissues, hu.shape, box).numpy())[inside]
    either = (chances[Region.RIGHT_LUNG] + chances[Region.LEFT_LUNG]).numpy()
    for own, side in zip(into.chances, SIDES, strict=True):
        mine = near == int(side)
        beside = _with_neighbours(mine) & ~are_lungs(near)
        own[box] = np.where(mine, either, chances[side].numpy() * beside)


def _with_neighbours(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask with the six neighbours of each voxel; `ndimage.binary_dilation` takes three times as long."""
    wider = mask.copy()
    for axis in range(mask.ndim):
        to, of = np.moveaxis(wider, axis, 0), np.moveaxis(mask, axis, 0)
        to[1:] |= of[:-1]
        to[:-1] |= of[1:]
    return wider


def _lungs_in(
    hu: NDArray[np.float32], outside: NDArray[np.bool_], found: NDArray[np.uint8], chances: Tensor
) -> NDArray[np.uint8]:
    """Return the regions of a box around the lungs: without lungs, if these hold no air.

    `outside`: the air outside the body. `found`: the most probable region of each voxel. `chances`: of all regions.
    """
    # A lung is found as a whole first, so that a voxel between right and left is not lost to a third class.
    lung = (chances[Region.RIGHT_LUNG] + chances[Region.LEFT_LUNG] > 0.5).numpy() & ~outside
    right = (chances[Region.RIGHT_LUNG] >= chances[Region.LEFT_LUNG]).numpy()
    regions = np.where(are_lungs(found), np.uint8(Region.BACKGROUND), found)
    for side, mine in zip(SIDES, _two_lungs(lung & right, lung & ~right), strict=True):
        if not mine.any():
            continue
        box = bounding_box(mine, 0)  # beyond it there is no hole in it
        whole = ndimage.binary_fill_holes(mine[box])
        regions[box][whole & (regions[box] != Region.AIRWAY)] = side
    if not _hold_air(hu, are_lungs(regions)):
        regions[are_lungs(regions)] = Region.BACKGROUND
    return regions


def _two_lungs(*found: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Return the right and the left lung, each one piece.

    In a patient who lies turned or off the middle, a part of one lung can look like the other one. So a piece that is
    found as one side, but touches only the lung of the other side, belongs to that one. If two scans were joined, their
    lungs are all kept: the checks of a chest then see it by their height.
    """
    pieces = [ndimage.label(mask)[0] for mask in found]
    sizes = [np.bincount(each.ravel()) for each in pieces]
    enough = ANOTHER_LUNG * max(each[1:].max(initial=0) for each in sizes)
    lungs = [_largest(each, size, enough) for each, size in zip(pieces, sizes, strict=True)]
    rests = [mask & ~lung for mask, lung in zip(found, lungs, strict=True)]
    return [
        lung | _pieces_touching(lung, rest) if rest.any() else lung
        for lung, rest in zip(lungs, reversed(rests), strict=True)
    ]


def _largest(pieces: NDArray[np.int32], sizes: NDArray[np.intp], enough: float) -> NDArray[np.bool_]:
    """Return the largest piece, and all that have at least so many voxels."""
    is_kept = sizes >= min(enough, sizes[1:].max(initial=1))
    is_kept[0] = False
    return np.asarray(is_kept[pieces])


def _pieces_touching(mask: NDArray[np.bool_], rest: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pieces of `rest` that touch a mask."""
    pieces, _ = ndimage.label(rest)
    touching = np.unique(pieces[_with_neighbours(mask)])
    return np.isin(pieces, touching[touching > 0])


def _hold_air(hu: NDArray[np.float32], lungs: NDArray[np.bool_]) -> bool:
    """Tell lungs, even very ill ones, from a scan of soft tissue alone."""
    return bool(np.count_nonzero(lungs & (hu < AIR_BELOW_HU)) > LEAST_AIR * np.count_nonzero(lungs))


def _air_outside(
    hu: NDArray[np.float32], body: NDArray[np.bool_], box: tuple[slice, ...], found: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return the air outside the body, in a box of the scan; noise in it looks like lung at times.

    `found`: the lungs in the box. Where lung is one piece with air outside, it has the body on at least three sides.
    """
    lungs = np.zeros(hu.shape, bool)
    lungs[box] = found
    labels, is_outside = outside_pieces(hu, lungs)
    slices, *in_plane = box
    sides = _sides_with(body[slices])[(slice(None), *in_plane)]
    return np.asarray(is_outside[labels[box]]) & (sides < SIDES_AROUND)


def _sides_with(body: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return on how many of the four sides of each voxel, within its slice, the body lies."""
    count = np.zeros(body.shape, np.uint8)
    for axis in (1, 2):
        places = np.expand_dims(np.arange(body.shape[axis]), tuple({0, 1, 2} - {axis}))
        first = body.argmax(axis, keepdims=True)
        last = body.shape[axis] - 1 - np.flip(body, axis).argmax(axis, keepdims=True)
        is_hit = np.take_along_axis(body, first, axis)  # a line without body has no first voxel of it
        count += is_hit & (places >= first)
        count += is_hit & (places <= last)
    return count


@torch.inference_mode()
def _logits(hu: Tensor, spacing_mm: float, network: LungSegmenter) -> tuple[Tensor, Tensor]:
    """Return the logits of regions and tissues on voxels of SPACING_MM, which the network reads."""
    shape = tuple(hu.shape)
    step = spacing_mm / SPACING_MM
    size = shape if step == 1 else tuple(max(1, round(n * step)) for n in shape)
    image = hu[None, None] if size == shape else F.interpolate(hu[None, None], size=size, mode="trilinear")
    padding = [(-n % MULTIPLE) for n in size]
    sides = [half for n in reversed(padding) for half in (n // 2, n - n // 2)]
    inner = tuple(slice(n // 2, n // 2 + length) for n, length in zip(padding, size, strict=True))
    regions, tissues = (logits[0][(slice(None), *inner)] for logits in network(_padded(image, sides)))
    return regions, tissues


def _around_lungs(coarse: Tensor, shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    """Return a box on the grid of `shape` with all of each lung; None if no voxel can be lung.

    Small pieces elsewhere, which are not part of a lung in the end, do not enlarge it.
    """
    if coarse.shape[1:] == shape:
        return tuple(slice(0, size) for size in shape)
    chances = coarse.softmax(0).numpy()
    kept = np.zeros(coarse.shape[1:], bool)
    for side in SIDES:
        labels, count = ndimage.label(chances[side] > MAY_BE_LUNG)
        sizes = np.bincount(labels[chances[side] > SURE_LUNG], minlength=count + 1)
        kept |= np.isin(labels, np.flatnonzero((sizes > 0) & (sizes >= PART_OF_LARGEST * sizes[1:].max(initial=0))))
    if not kept.any():
        return None
    return tuple(
        slice(part.start * wanted // size, -(-part.stop * wanted // size))
        for part, size, wanted in zip(bounding_box(kept, BOX_MARGIN), kept.shape, shape, strict=True)
    )


def _within(coarse: Tensor, shape: tuple[int, ...], box: tuple[slice, ...]) -> Tensor:
    """Interpolate linearly to the grid of `shape`, in a box of it: (classes, slices, rows, columns)."""
    if coarse.shape[1:] == shape:
        return coarse[(slice(None), *box)]
    depth, rows, columns = (_linear(*each) for each in zip(coarse.shape[1:], shape, box, strict=True))
    answer = rows @ (coarse @ columns.T)
    return (depth @ answer.flatten(2)).unflatten(2, answer.shape[2:])


def _linear(size: int, wanted: int, part: slice) -> Tensor:
    """Return what each voxel of a part of `wanted` takes from each of `size` voxels."""
    shares = torch.zeros(wanted, size)
    for place, (low, share) in enumerate(_places(size, wanted)):
        shares[place, low] += 1 - share
        shares[place, min(low + 1, size - 1)] += share
    return shares[part]


def _nearest(classes: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return classes on another grid with the same outer faces."""
    places = [(2 * np.arange(n) + 1) * size // (2 * n) for size, n in zip(classes.shape, shape, strict=True)]
    return classes[np.ix_(*places)]


def _highest(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the class with the highest logit of each voxel; `argmax` over the first axis takes seven times as long."""
    best, classes = logits[0].copy(), np.zeros(logits.shape[1:], np.uint8)
    for number in range(1, len(logits)):
        is_higher = logits[number] > best
        classes[is_higher] = number
        np.copyto(best, logits[number], where=is_higher)
    return classes


def _padded(image: Tensor, sides: list[int]) -> Tensor:
    """Pad shape (1, 1, slices, rows, columns) with air beside the patient, and with the last slices above and below."""
    in_plane = F.pad(image, [*sides[:4], 0, 0], value=AIR_HU)
    return F.pad(in_plane, [0, 0, 0, 0, *sides[4:]], mode="replicate")[0]


def _places(size: int, wanted: int) -> list[tuple[int, float]]:
    """Return for each of `wanted` slices the one of `size` below its centre, and the share of the one above."""
    centres = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
    return [(int(centre), float(centre - int(centre))) for centre in centres]


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks, 0 to 1; two empty masks agree."""
    both = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / both if both else 1.0
