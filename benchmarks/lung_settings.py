"""Bodies of the lung segmenter's own generator in settings that training never drew. Nothing was chosen on them.

Each setting lies outside the ranges of training in one respect; all else is drawn as in training:

- scanner: noise of 45 to 60 HU in voxels of 4 mm (training: at most 45), slices of 11 to 15 mm at half of their
  profile's maximum (10), sharpened by 0.9 to 1.3 (0.9);
- build: lungs a quarter shorter and a fifth broader (training: a standard deviation of 7 % in their ratio), 30 to 50 mm
  more fat around the body, a field of view of 440 to 520 mm (500);
- lesions: consolidation of 75 to 95 HU, as after contrast agent (training: at most 70), and ground glass 500 to 560 HU
  denser than lung (480).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from pipeline.phantom.body.acquisition import HIGHEST_HU, LOWEST_HU, acquire
from pipeline.phantom.body.frame import Field, Frame, draw_frame
from pipeline.phantom.body.sample import STEP_MM, Sample, compose
from pipeline.preprocessing.lungs import largest_piece

FIRST_SEED = 70_000
FWHM = 2.355  # of a Gaussian, in standard deviations
BODY_ABOVE_HU, FAT_HU = -300, -100


def frame_of(rng: Generator, lowest_mm: tuple[float, ...], highest_mm: tuple[float, ...]) -> Frame:
    shape = [int(np.ceil(side / STEP_MM / 8)) * 8 for side in rng.uniform(lowest_mm, highest_mm)]
    centre = (rng.uniform(-60, 0), rng.uniform(-5, 20), rng.uniform(-12, 12))
    return draw_frame((shape[0], shape[1], shape[2]), STEP_MM, centre, rng)


def usual_frame(rng: Generator) -> Frame:
    return frame_of(rng, (230, 230, 310), (360, 320, 420))


def of_scanner(rng: Generator) -> Sample:
    body = compose(usual_frame(rng), rng)
    thick, in_plane = rng.uniform(11, 15) / FWHM / STEP_MM, rng.uniform(0.3, 0.75)
    seen = ndimage.gaussian_filter(body.hu, (thick, in_plane, in_plane), truncate=2.5)
    seen = seen + rng.uniform(0.9, 1.3) * (seen - ndimage.gaussian_filter(seen, 0.8, truncate=2.5))
    seen = seen + rng.uniform(45, 60) * rng.standard_normal(seen.shape)
    return replace(body, hu=np.clip(seen, LOWEST_HU, HIGHEST_HU).astype(np.float32))


def of_build(rng: Generator) -> Sample:
    frame = frame_of(rng, (230, 340, 440), (300, 400, 520))
    frame = Frame(frame.z / np.float32(0.75), frame.y, frame.x / np.float32(1.2), STEP_MM)
    body = compose(frame, rng)
    return replace(body, hu=acquire(fattened(body.hu, rng.uniform(30, 50)), STEP_MM, rng))


def fattened(hu: Field, by_mm: float) -> Field:
    """Replace what lies around the body by a layer of fat, within the slices."""
    body = largest_piece(hu > BODY_ABOVE_HU)
    filled = np.stack([ndimage.binary_fill_holes(section) for section in body])
    around = np.stack([ndimage.distance_transform_edt(~section) for section in filled]) * STEP_MM
    return np.where(~filled & (around <= by_mm), np.float32(FAT_HU), hu)


def of_lesions(rng: Generator) -> Sample:
    body = compose(usual_frame(rng), rng, dense=(rng.uniform(75, 95), rng.uniform(500, 560)))
    return replace(body, hu=acquire(body.hu, STEP_MM, rng))


SETTINGS: dict[str, Callable[[Generator], Sample]] = {
    "scanner": of_scanner,
    "build": of_build,
    "lesions": of_lesions,
}


def held_out(setting: str, count: int) -> Iterator[Sample]:
    """Draw bodies of a setting; the same ones in each run."""
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        yield SETTINGS[setting](np.random.default_rng(seed))
