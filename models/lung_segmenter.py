"""Defines the network that finds lungs, and what it finds: regions of the trunk, and tissues inside the lungs.

The network learnt from synthetic bodies alone (`pipeline.phantom.body`). Its card is `models/lung_segmenter.md`.
"""

import hashlib
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn

from models.import_lean import import_lean
from models.reasons import SEGMENTER_ALTERED
from models.refusal import Refusal

WEIGHTS = Path(__file__).with_name("lung_segmenter.safetensors")
WEIGHTS_SHA256 = "83820084e5ea12259c24237121f86c01ffaab27c3b10c559a765dcdf2463e022"
SPACING_MM = 4.0  # the grid on which it was trained
FEATURES = (32, 32, 64, 96, 96, 32)
FOLD = 2  # voxels along each axis that are folded into channels
MULTIPLE = 16 * FOLD  # of voxels along each axis
# Two windows: what differs inside a lung, and what differs in soft tissue.
WINDOWS_HU = ((-1024.0, -200.0), (-200.0, 300.0))


class Region(IntEnum):
    """What a voxel of the trunk belongs to."""

    BACKGROUND = 0
    RIGHT_LUNG = 1
    LEFT_LUNG = 2
    AIRWAY = 3
    MEDIASTINUM = 4
    BOWEL_GAS = 5


class Tissue(IntEnum):
    """What a voxel inside a lung is."""

    PARENCHYMA = 0
    GROUND_GLASS = 1
    CONSOLIDATION = 2
    VESSEL = 3
    AIRWAY = 4


class LungSegmenter(nn.Module):
    """A small 3D U-Net with two outputs: logits of regions, and logits of tissues.

    Blocks of 2 x 2 x 2 voxels are folded into channels, and unfolded at the end. The network then works at half the
    resolution and answers at the whole one, in a fifth of the time (Shi et al., CVPR 2016, arXiv 1609.05158).
    """

    def __init__(self) -> None:
        import_lean("monai")
        from monai.networks.nets.basic_unet import BasicUNet

        super().__init__()
        self.net = BasicUNet(
            spatial_dims=3,
            in_channels=len(WINDOWS_HU) * FOLD**3,
            out_channels=(len(Region) + len(Tissue)) * FOLD**3,
            features=FEATURES,
            norm=("group", {"num_groups": 8}),
            upsample="nontrainable",
        )

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        """Map HU to logits.

        Parameters
        ----------
        hu : Tensor
            Shape (batch, slices, rows, columns), axes to head, back and left; sizes are multiples of MULTIPLE.

        Returns
        -------
        tuple of Tensor
            Logits of `Region` and of `Tissue`, shapes (batch, classes, slices, rows, columns).
        """
        windows = [(hu.clamp(low, high) - low) / (high - low) * 2 - 1 for low, high in WINDOWS_HU]
        logits = _unfolded(self.net(_folded(torch.stack(windows, dim=1))))
        return logits[:, : len(Region)], logits[:, len(Region) :]


def _folded(x: Tensor) -> Tensor:
    """Fold blocks of FOLD voxels along each axis into channels."""
    batch, channels, *sizes = x.shape
    blocks = [side for size in sizes for side in (size // FOLD, FOLD)]
    parts = x.reshape(batch, channels, *blocks).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return parts.reshape(batch, channels * FOLD**3, *(size // FOLD for size in sizes))


def _unfolded(x: Tensor) -> Tensor:
    """Undo `_folded`."""
    batch, channels, *sizes = x.shape
    parts = x.reshape(batch, channels // FOLD**3, FOLD, FOLD, FOLD, *sizes).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.reshape(batch, channels // FOLD**3, *(size * FOLD for size in sizes))


@lru_cache(1)
def load_segmenter() -> LungSegmenter:
    """Return the segmenter with the weights of this package, in evaluation mode.

    Raises
    ------
    Refusal
        E_SEGMENTER_ALTERED if the weights are absent or not those of this version.
    """
    try:
        weights = WEIGHTS.read_bytes()
    except OSError as error:
        raise Refusal(SEGMENTER_ALTERED, private=str(WEIGHTS)) from error
    if hashlib.sha256(weights).hexdigest() != WEIGHTS_SHA256:
        raise Refusal(SEGMENTER_ALTERED, private=str(WEIGHTS))
    network = LungSegmenter()
    network.load_state_dict({name: value.float() for name, value in load(weights).items()})
    return network.eval()
