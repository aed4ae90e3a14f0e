"""Tests of the result picture: orientation, position of the saliency map, and no patient data in the pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from pipeline.clinic.pictures import SALIENCY
from pipeline.clinic.results import picture
from pipeline.clinic.results.write import PICTURE, write_results
from pipeline.scoring.score import Score
from tests.helpers.scored_answers import answer_to, rename, series_of


def colourful(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mask of warm colours, which are neither grey nor the blue of the contour."""
    red, _, blue = (pixels[..., channel].astype(int) for channel in range(3))
    return red > blue + 40


@pytest.fixture(scope="module")
def drawn(scan: Path, score: Score, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint8]:
    made = answer_to(score, series_of(scan), tmp_path_factory.mktemp("answers") / "one")
    return picture.draw(made, made.folder)


def tiles(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The slices, without header, footer and colour bar."""
    top = picture.HEAD_LINES * picture.LINE + picture.GAP
    below = pixels.shape[0] - 2 * picture.LINE - picture.GAP
    area = pixels[top:below, : pixels.shape[1] - picture.BAR]
    rows = np.array_split(area, picture.ROWS, axis=0)
    return [tile for row in rows for tile in np.array_split(row, picture.COLUMNS, axis=1)]


def test_saliency_in_the_right_lung_is_on_the_left_of_each_slice(drawn: NDArray[np.uint8]) -> None:
    marked = [np.argwhere(colourful(tile)) for tile in tiles(drawn)]
    hot = [places for places in marked if len(places) > 50]
    assert hot
    for places in hot:
        assert places[:, 1].max() < 0.5 * tiles(drawn)[0].shape[1]


def test_lungs_are_outlined_on_every_slice(drawn: NDArray[np.uint8]) -> None:
    for tile in tiles(drawn):
        _, _, blue = (tile[..., channel].astype(int) for channel in range(3))
        assert ((blue > tile[..., 0] + 100).sum()) > 50


def test_slice_with_the_saliency_peak_is_included(scan: Path, score: Score, tmp_path: Path) -> None:
    """The peak may lie between two regularly chosen slices. It must be shown, because it defines the colour scale."""
    made = answer_to(score, series_of(scan), tmp_path / "one")
    slices, _ = picture.choose_slices(made.folder)
    assert score.saliency is not None
    peak = np.unravel_index(score.saliency.argmax(), score.saliency.shape)
    height_mm = (score.prepared.tensor_affine @ [*peak, 1.0])[2]
    assert min(abs(height_mm - at) for _, at in slices) < 3  # half of the slice distance
    assert len(slices) == 12
    assert sorted((index for index, _ in slices), reverse=True) == [index for index, _ in slices]


def test_picture_without_saliency_has_no_colour_but_the_contour(scan: Path, score: Score, tmp_path: Path) -> None:
    why = {"saliency": {"shown": False, "label": None, "method": None, "why_not": "the probabilities are low"}}
    made = answer_to(score, series_of(scan), tmp_path / "one", score=score.to_json() | why)
    (made.folder / SALIENCY).unlink()
    assert not colourful(picture.draw(made, made.folder)).any()


@pytest.mark.slow
@pytest.mark.parametrize("identity", [{"PatientName": "CANARY^NAME", "PatientID": "CANARY-7"}, {}], ids=["named", ""])
def test_pixels_do_not_depend_on_the_patient_identity(
    identity: dict[str, Any], drawn: NDArray[np.uint8], scan: Path, score: Score, tmp_path: Path
) -> None:
    made = answer_to(score, rename(scan, tmp_path / "scan", **identity), tmp_path / "one")
    assert write_results(made, made.folder, report=False) is None
    image = dcmread(made.folder / PICTURE)
    assert image.BurnedInAnnotation == "NO"
    assert list(image.PatientOrientation) == ["L", "P"]
    assert (image.Modality, image.ConversionType, image.PhotometricInterpretation) == ("OT", "DI", "RGB")
    np.testing.assert_array_equal(image.pixel_array, drawn)
