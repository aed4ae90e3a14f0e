"""Personalisation of a model: its head is fitted again to the patients of one hospital only."""

import numpy as np
import torch

from models.compute import PROCESSOR, Compute
from models.loss import masked_bce
from models.network import SeverityNetwork
from pipeline.cohort.dataset import Examples

# Weight of the squared distance from the initial head against the sum of the patients' losses: about twenty patients
# hardly move the head, several hundred do.
PENALTY = 10.0
_STEPS = 100


def fit_head(
    network: SeverityNetwork, examples: Examples, *, penalty: float = PENALTY, compute: Compute = PROCESSOR
) -> None:
    """Fit the last layer of `network` in place to `examples`; all other layers stay unchanged.

    This is a logistic regression on the network's features with a penalty on the distance from the initial head (the
    posterior mode under a Gaussian prior around it), solved by L-BFGS (Liu & Nocedal, Math. Programming 1989). It is
    convex, so the result does not depend on an order or a seed. The device computes the features in float32; the fit is
    on the CPU. Raises Refusal: those of `Compute.use`.
    """
    features, targets = _features(network, examples, compute.exact())
    head = network.head
    anchor = [weight.detach().clone() for weight in head.parameters()]
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = len(examples) * masked_bce(head(features), targets)
        distance = sum(((w - a) ** 2).sum() for w, a in zip(head.parameters(), anchor, strict=True))
        loss = loss + 0.5 * penalty * distance
        loss.backward()
        return loss

    optimiser.step(closure)
    network.hold_short()


@torch.no_grad()
def _features(
    network: SeverityNetwork, examples: Examples, compute: Compute, batch_size: int = 16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the head's input, shape (patients, features), and the targets, shape (patients, labels)."""
    network.eval()
    seen = []
    at_once = compute.at_most(batch_size)
    with compute.use(network):
        for start in range(0, len(examples), at_once):
            scans, tabular, _ = examples.batch(np.arange(start, min(start + at_once, len(examples))), None)
            seen.append(network.joined(compute.move(scans), compute.move(tabular)).float().cpu())
    return torch.cat(seen), torch.from_numpy(examples.targets)
