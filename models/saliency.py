"""Maps the parts of the lungs that raise a label's logit: integrated gradients from the same lungs without dense parts.

Integrated gradients (Sundararajan, Taly & Yan, ICML 2017) change the scan step by step from a baseline to the real
scan, and distribute the increase of a logit over the voxels. The baseline is the patient's own scan, in which lung
denser than aerated lung gets the density of aerated lung. So the map shows the effect of the dense parts of these
lungs. It has the tensor's resolution, about 6 mm, does not need a layer of a certain network, and is deterministic.

docs/saliency.md compares it with other methods and reports how often it finds planted lesions.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from models.compute import PROCESSOR, Compute
from models.encoders import FrozenEncoder, TunedEncoder
from models.network import SeverityNetwork
from models.network_layers import OwnBackbone

METHOD = "integrated gradients from the same lungs without dense parts"
STEPS = 4  # between baseline and scan; 8 and 32 do not locate lesions better
SMOOTHING_VOXELS = 1.0  # standard deviation; without smoothing, single voxels are noisy
AERATED = 0.1  # quantile of the values in the lungs; the preprocessing shifts HU by the same quantile


def saliency(
    network: SeverityNetwork, scan: Tensor, tabular: Tensor, label_index: int, *, compute: Compute = PROCESSOR
) -> NDArray[np.float32]:
    """Map how much each part of the lungs raises the logit of a label, (slices, rows, columns), scaled to 0 to 1.

    `scan` (2, slices, rows, columns) and `tabular` (4): float32, the network's input; `label_index`: index in LABELS.
    The map is all zeros if nothing in the lungs raises the logit. It shows where, but not how much: show it only
    together with the probability.

    The network must be in evaluation mode (else ValueError); its weights, gradients and mode do not change. It and both
    tensors are on the CPU; `compute` computes, in float32. Raises Refusal: those of `Compute.use`.
    """
    with compute.use(network):
        shares = attributions(network, scan, tabular, label_index, compute=compute).numpy()
    smooth = ndimage.gaussian_filter(shares, SMOOTHING_VOXELS)
    rise = np.where(scan[1].numpy() > 0.5, np.maximum(smooth, 0), 0)
    return (rise / max(rise.max(), np.finfo(np.float32).tiny)).astype(np.float32)


def attributions(
    network: SeverityNetwork, scan: Tensor, tabular: Tensor, label_index: int, *, compute: Compute = PROCESSOR
) -> Tensor:
    """Return each voxel's signed share of the logit's difference to the baseline, (slices, rows, columns).

    Except for the error of STEPS steps, the shares add up to the difference of both logits. Arguments as in `saliency`,
    but the network is on the device; the result is on the CPU.
    """
    if network.training:
        raise ValueError("the network must be in evaluation mode: in training a map would change its statistics")
    # Enable gradients even if the caller has disabled them. Only gradients of the path are computed, not of weights.
    with torch.inference_mode(False), torch.enable_grad():
        scan, tabular = scan.clone(), tabular.clone()
        dense = scan - baseline(scan)
        left_out = 1 - (torch.arange(STEPS) + 0.5) / STEPS
        path = compute.move(scan - left_out[:, None, None, None, None] * dense)
        # The backward pass through the first layer would take nearly all of the time. The layer is linear, so one
        # backward pass with the mean of all steps gives the same result, at any point of the path.
        # Of these, the first layer is not known, or not here.
        if isinstance(network.backbone, OwnBackbone | FrozenEncoder | TunedEncoder):
            logits = network(path.requires_grad_(), compute.move(tabular).expand(STEPS, -1))[:, label_index]
            (gradients,) = torch.autograd.grad(logits.sum(), path)
            return dense[0] * gradients.mean(dim=0)[0].cpu()
        first = next(layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Conv3d)))
        seen: list[tuple[Tensor, Tensor]] = []
        with first.register_forward_hook(lambda _layer, given, made: seen.append((given[0], made))):
            logits = network(path.requires_grad_(), compute.move(tabular).expand(STEPS, -1))[:, label_index]
        ((given, made),) = seen
        (gradients,) = torch.autograd.grad(logits.sum(), made)
        one = given.detach().unflatten(0, (STEPS, -1))[0].requires_grad_()
        # Sums of products, because a gradient that is passed as an argument makes torch import sympy.
        weighted = first(one) * gradients.unflatten(0, (STEPS, -1)).mean(dim=0)
        (gradient,) = torch.autograd.grad(weighted.sum(), one)
        # Convert from the input of the first layer, which may be slice by slice, to the scan.
        weighted = given * gradient.repeat(STEPS, *[1] * (gradient.ndim - 1))
        (gradient,) = torch.autograd.grad(weighted.sum(), path)
        return dense[0] * gradient[0, 0].cpu()


def baseline(scan: Tensor) -> Tensor:
    """Return the scan (2, slices, rows, columns) with dense lung set to the density of aerated lung."""
    window, lungs = scan
    inside = window[lungs > 0.5]
    if not len(inside):
        return scan
    dense = (window - torch.quantile(inside, AERATED)).clamp(min=0)
    return torch.stack([window - lungs * dense, lungs])
