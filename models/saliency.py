"""Which parts of the lungs speak for a label: integrated gradients from the same lungs without anything dense in them.

Integrated gradients (Sundararajan, Taly & Yan, ICML 2017) share out the rise of a logit among voxels as the scan is
changed, step by step, from a baseline to what it is. The baseline here is the patient's own scan in which lung denser
than its aerated part is as dense as that: what is shared out is what the dense parts of these lungs add. The map has
the tensor's resolution, some 6 mm, needs no layer of a certain network, and is the same each time.

docs/saliency.md says what it was compared with and how often it finds planted lesions.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from models.network import SeverityNetwork

METHOD = "integrated gradients from the same lungs without dense parts"
STEPS = 4  # between baseline and scan; 8 and 32 point no better
SMOOTHING_VOXELS = 1.0  # standard deviation; single voxels of such maps are noise
AERATED = 0.1  # quantile of the lungs' window: the preprocessing centres HU on the same one


def saliency(network: SeverityNetwork, scan: Tensor, tabular: Tensor, label_index: int) -> NDArray[np.float32]:
    """How much each part of the lungs raises the logit of a label, (slices, rows, columns), 0 to 1 as its maximum.

    `scan` (2, slices, rows, columns) and `tabular` (4): float32, as the network sees them; `label_index`: in LABELS.
    All zeros where nothing in the lungs speaks for the label. It says where, never how much: show it with the
    probability, or not at all.

    The network must be in evaluation mode (else ValueError); its weights, gradients and mode are left as they were.
    """
    shares = attributions(network, scan, tabular, label_index).numpy()
    smooth = ndimage.gaussian_filter(shares, SMOOTHING_VOXELS)
    rise = np.where(scan[1].numpy() > 0.5, np.maximum(smooth, 0), 0)
    return (rise / max(rise.max(), np.finfo(np.float32).tiny)).astype(np.float32)


def attributions(network: SeverityNetwork, scan: Tensor, tabular: Tensor, label_index: int) -> Tensor:
    """Each voxel's share, of either sign, of the label's logit over that of the baseline; (slices, rows, columns).

    Up to the error of STEPS steps the shares add up to the difference of both logits. Arguments as of `saliency`.
    """
    if network.training:
        raise ValueError("the network must be in evaluation mode: in training a map would change its statistics")
    # Also where the caller has turned gradients off. Only those of the path are computed, no weight's.
    with torch.inference_mode(False), torch.enable_grad():
        scan, tabular = scan.clone(), tabular.clone()
        dense = scan - baseline(scan)
        left_out = 1 - (torch.arange(STEPS) + 0.5) / STEPS
        path = scan - left_out[:, None, None, None, None] * dense
        # Nearly all time would go into the way back through the first layer, step by step. It is linear: to go back
        # once, with the mean of all steps, gives the same, wherever on the path.
        first = next(layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Conv3d)))
        seen: list[tuple[Tensor, Tensor]] = []
        with first.register_forward_hook(lambda _layer, given, made: seen.append((given[0], made))):
            logits = network(path.requires_grad_(), tabular.expand(STEPS, -1))[:, label_index]
        ((given, made),) = seen
        (gradients,) = torch.autograd.grad(logits.sum(), made)
        one = given.detach().unflatten(0, (STEPS, -1))[0].requires_grad_()
        (gradient,) = torch.autograd.grad(first(one), one, gradients.unflatten(0, (STEPS, -1)).mean(dim=0))
        # From how the first layer is given a scan, perhaps slice by slice, to the scan.
        (gradient,) = torch.autograd.grad(given, path, gradient.repeat(STEPS, *[1] * (gradient.ndim - 1)))
        return dense[0] * gradient[0, 0]


def baseline(scan: Tensor) -> Tensor:
    """The scan (2, slices, rows, columns) with all lung that is denser than its aerated part as dense as that."""
    window, lungs = scan
    inside = window[lungs > 0.5]
    if not len(inside):
        return scan
    dense = (window - torch.quantile(inside, AERATED)).clamp(min=0)
    return torch.stack([window - lungs * dense, lungs])
