"""A model made more a hospital's own: its head fitted once more, to this hospital's patients alone."""

import numpy as np
import torch

from models.loss import masked_bce
from models.network import SeverityNetwork
from pipeline.cohort.dataset import Examples

# Of the squared distance from the head that came in, against the sum of the patients' losses: some twenty patients
# hardly move it, some hundreds do.
PENALTY = 10.0
_STEPS = 100


def fit_head(network: SeverityNetwork, examples: Examples, *, penalty: float = PENALTY) -> None:
    """Fit the last layer of `network`, in place, to `examples`; everything before it stays as it is.

    A penalised logistic regression on the network's own features, held near the head that came in (the posterior mode
    under a Gaussian prior around it), by L-BFGS (Liu & Nocedal, Math. Programming 1989): convex, so that the result
    depends on no order and no seed.
    """
    features, targets = _features(network, examples)
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
def _features(network: SeverityNetwork, examples: Examples, batch_size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head sees of each patient, shape (patients, features), and the targets (patients, labels)."""
    network.eval()
    seen = []
    for start in range(0, len(examples), batch_size):
        scans, tabular, _ = examples.batch(np.arange(start, min(start + batch_size, len(examples))), None)
        seen.append(network.joined(scans, tabular).float())
    return torch.cat(seen), torch.from_numpy(examples.targets)
