"""The lung segmenter: its weights belong to this version, and its output has the grid of the scan."""

from pathlib import Path

import pytest
import torch

from models import lung_segmenter
from models.lung_segmenter import MULTIPLE, WEIGHTS, WEIGHTS_SHA256, LungSegmenter, Region, Tissue, load_segmenter
from models.refusal import Refusal

MOST_BYTES = 5_000_000


def test_card_states_sha256_of_the_weights() -> None:
    assert f"`{WEIGHTS_SHA256}`" in WEIGHTS.with_suffix(".md").read_text()


def test_weights_are_small_and_load() -> None:
    assert WEIGHTS.stat().st_size <= MOST_BYTES
    network = load_segmenter()
    assert not network.training
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())


@pytest.mark.parametrize("change", ["absent", "altered"])
def test_missing_or_altered_weights_are_refused(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "weights"
    if change == "altered":
        content = bytearray(WEIGHTS.read_bytes())
        content[-1] ^= 1
        other.write_bytes(content)
    monkeypatch.setattr(lung_segmenter, "WEIGHTS", other)
    load_segmenter.cache_clear()
    with pytest.raises(Refusal) as refused:
        load_segmenter()
    load_segmenter.cache_clear()
    assert refused.value.code == "E_SEGMENTER_ALTERED"
    assert str(tmp_path) not in str(refused.value)


def test_output_has_one_value_per_voxel_and_class() -> None:
    shape = (MULTIPLE, 2 * MULTIPLE, MULTIPLE)
    with torch.inference_mode():
        regions, tissues = LungSegmenter().eval()(torch.zeros(2, *shape))
    assert regions.shape == (2, len(Region), *shape)
    assert tissues.shape == (2, len(Tissue), *shape)


def test_change_of_one_voxel_changes_output_at_its_position() -> None:
    """Folding voxels into channels and back preserves their positions."""
    torch.manual_seed(0)
    network = LungSegmenter().eval()
    scan = torch.full((1, 2 * MULTIPLE, 2 * MULTIPLE, 2 * MULTIPLE), -800.0)
    changed = scan.clone()
    place = (40, 21, 33)
    changed[(0, *place)] = 200.0
    with torch.inference_mode():
        difference = (network(changed)[0] - network(scan)[0]).abs().sum(dim=1)[0]
    peak = torch.tensor(torch.unravel_index(difference.argmax(), difference.shape))
    assert (peak - torch.tensor(place)).abs().max() <= 2
