"""The picture of an answer: left is left, the map is where it belongs, and nobody is named."""

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
    """Where warm colours are: neither grey nor the contour's blue."""
    red, _, blue = (pixels[..., channel].astype(int) for channel in range(3))
    return red > blue + 40


@pytest.fixture(scope="module")
def drawn(scan: Path, score: Score, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint8]:
    made = answer_to(score, series_of(scan), tmp_path_factory.mktemp("answers") / "one")
    return picture.draw(made, made.folder)


def tiles(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The slices, without head, foot and colour bar."""
    top = picture.HEAD_LINES * picture.LINE + picture.GAP
    below = pixels.shape[0] - picture.FOOT_LINES * picture.LINE - picture.GAP
    area = pixels[top:below, : pixels.shape[1] - picture.BAR]
    rows = np.array_split(area, picture.ROWS, axis=0)
    return [tile for row in rows for tile in np.array_split(row, picture.COLUMNS, axis=1)]


def test_a_map_of_the_right_lung_lies_on_the_left_of_each_slice(drawn: NDArray[np.uint8]) -> None:
    marked = [np.argwhere(colourful(tile)) for tile in tiles(drawn)]
    hot = [places for places in marked if len(places) > 50]
    assert hot
    for places in hot:
        assert places[:, 1].max() < 0.5 * tiles(drawn)[0].shape[1]


def test_the_lungs_are_outlined_on_every_slice(drawn: NDArray[np.uint8]) -> None:
    for tile in tiles(drawn):
        _, _, blue = (tile[..., channel].astype(int) for channel in range(3))
        assert ((blue > tile[..., 0] + 100).sum()) > 50


def test_the_slice_with_the_peak_is_among_them(scan: Path, score: Score, tmp_path: Path) -> None:
    """Even where it lies between two of the slices that would be chosen: its heat reaches the end of the scale."""
    made = answer_to(score, series_of(scan), tmp_path / "one")
    slices, _ = picture.choose_slices(made.folder)
    assert score.saliency is not None
    peak = np.unravel_index(score.saliency.argmax(), score.saliency.shape)
    height_mm = (score.prepared.tensor_affine @ [*peak, 1.0])[2]
    assert min(abs(height_mm - at) for _, at in slices) < 3  # half of the distance between slices
    assert len(slices) == 12
    assert sorted((index for index, _ in slices), reverse=True) == [index for index, _ in slices]


def test_without_a_map_there_are_no_colours_but_the_contour(scan: Path, score: Score, tmp_path: Path) -> None:
    why = {"saliency": {"shown": False, "label": None, "method": None, "why_not": "the probabilities are low"}}
    made = answer_to(score, series_of(scan), tmp_path / "one", score=score.to_json() | why)
    (made.folder / SALIENCY).unlink()
    assert not colourful(picture.draw(made, made.folder)).any()


@pytest.mark.slow
@pytest.mark.parametrize("identity", [{"PatientName": "CANARY^NAME", "PatientID": "CANARY-7"}, {}], ids=["named", ""])
def test_no_pixel_depends_on_who_it_is(
    identity: dict[str, Any], drawn: NDArray[np.uint8], scan: Path, score: Score, tmp_path: Path
) -> None:
    made = answer_to(score, rename(scan, tmp_path / "scan", **identity), tmp_path / "one")
    assert write_results(made, made.folder, report=False) is None
    image = dcmread(made.folder / PICTURE)
    assert image.BurnedInAnnotation == "NO"
    assert list(image.PatientOrientation) == ["L", "P"]
    assert (image.Modality, image.ConversionType, image.PhotometricInterpretation) == ("OT", "DI", "RGB")
    np.testing.assert_array_equal(image.pixel_array, drawn)
