"""The maps that pointing.py compares. Each takes (network, scan, tabular, label index) and has the scan's shape.

MONAI's own tools are used if they exist. Its Grad-CAM leaves hooks in a network, and its upsampler does not support
slices; this is the reason for the copies and the wrapper.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from monai.visualize import GradCAM, OcclusionSensitivity, SmoothGrad
from monai.visualize.class_activation_maps import ModelWithHooks
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from models.network import SeverityNetwork
from models.saliency import SMOOTHING_VOXELS, attributions, baseline, saliency

Map = NDArray[np.floating]
Method = Callable[[SeverityNetwork, Tensor, Tensor, int], Map]
AERATED_WINDOW = -0.87  # -920 HU, the value of aerated lung after preprocessing
CUBE = 8  # voxels


class OfScans(nn.Module):
    """A copy of the network for MONAI's tools: its only input is the scan; with or without hooks."""

    def __init__(self, network: SeverityNetwork, tabular: Tensor) -> None:
        super().__init__()
        self.network, self.tabular = copy.deepcopy(network), tabular

    def forward(self, scans: Tensor) -> Tensor:
        return self.network(scans, self.tabular.expand(len(scans), -1))


def _enlarged(small: Tensor, shape: torch.Size) -> Map:
    """Upsample to (1, 1, slices, rows, columns); (slices, 1, rows, columns) if only rows and columns are coarse."""
    if small.ndim == 4:
        return F.interpolate(small, size=shape[1:], mode="bilinear").squeeze(1).detach().numpy()
    return F.interpolate(small, size=shape, mode="trilinear")[0, 0].detach().numpy()


def grad_cam(layer: str) -> Method:
    def method(network: SeverityNetwork, scan: Tensor, tabular: Tensor, label: int) -> Map:
        cam = GradCAM(
            OfScans(network, tabular),
            target_layers=f"network.backbone.{layer}",
            upsampler=lambda size: lambda small: small,
            postprocessing=lambda small: small,
        )
        return _enlarged(cam(scan[None], class_idx=label), scan.shape[1:])

    return method


def layer_cam(layer: str) -> Method:
    """Jiang et al., LayerCAM, IEEE TIP 2021: each activation times its own gradient, where that is positive."""

    def method(network: SeverityNetwork, scan: Tensor, tabular: Tensor, label: int) -> Map:
        hooked = ModelWithHooks(OfScans(network, tabular), f"network.backbone.{layer}", True, True)
        _, (activation,), (gradient,) = hooked(scan[None], class_idx=label)
        return _enlarged((activation * gradient.relu()).sum(dim=1, keepdim=True), scan.shape[1:])

    return method


def attended(in_plane: Method) -> Method:
    """For the 2.5D network: attention over slices times a map within each slice, scaled to a maximum of 1."""

    def method(network: SeverityNetwork, scan: Tensor, tabular: Tensor, label: int) -> Map:
        found = in_plane(network, scan, tabular, label)
        with torch.inference_mode():
            attention = network.backbone.attention(network.backbone.encode(scan[None]))[0].numpy()
        return found / np.maximum(found.max(axis=(1, 2)), 1e-12)[:, None, None] * attention[:, None, None]

    return method


def occlusion(network: SeverityNetwork, scan: Tensor, tabular: Tensor, label: int) -> Map:
    """Decrease of the logit if a cube is replaced by aerated lung; blurred, so that a cube's maximum is its centre."""
    of_scans = OfScans(network, tabular)
    tool = OcclusionSensitivity(of_scans, CUBE, verbose=False, mode=AERATED_WINDOW, overlap=0.0, activate=False)
    with torch.inference_mode():
        lost = of_scans(scan[None])[0, label] - tool(scan[None])[0][0, label]
    return ndimage.gaussian_filter(lost.numpy(), CUBE / 4)


def smooth_grad(network: SeverityNetwork, scan: Tensor, tabular: Tensor, label: int) -> Map:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tool = SmoothGrad(OfScans(network, tabular), stdev_spread=0.05, n_samples=8, verbose=False)
        return ndimage.gaussian_filter(tool(scan[None], index=label)[0, 0].numpy(), SMOOTHING_VOXELS)


def unsmoothed(network: SeverityNetwork, scan: Tensor, tabular: Tensor, label: int) -> Map:
    return attributions(network, scan, tabular, label).numpy()


def density(network: SeverityNetwork, scan: Tensor, tabular: Tensor, label: int) -> Map:
    """Density above that of aerated lung, smoothed like our map; it does not use a network."""
    return ndimage.gaussian_filter((scan - baseline(scan))[0].numpy(), SMOOTHING_VOXELS)


OURS = "integrated gradients (chosen)"
METHODS: dict[str, Method] = {
    OURS: saliency,
    "the same without smoothing": unsmoothed,
    "Grad-CAM, last layer": grad_cam("layer4"),
    "Grad-CAM, layer 2": grad_cam("layer2"),
    "Grad-CAM, layer 1": grad_cam("layer1"),
    "Layer-CAM, layer 1": layer_cam("layer1"),
    "Layer-CAM, stem": layer_cam("act"),
    "SmoothGrad": smooth_grad,
    "occlusion, cubes of 8 voxels": occlusion,
    "density, no network": density,
}
SLICEWISE: dict[str, Method] = {
    OURS: saliency,
    "attention x Grad-CAM, layer 1": attended(grad_cam("encoder.layer1")),
    "attention x Layer-CAM, layer 1": attended(layer_cam("encoder.layer1")),
    "attention x Layer-CAM, stem": attended(layer_cam("encoder.act")),
    "attention x integrated gradients": attended(saliency),
    "density, no network": density,
}
