"""Tests membership inference: whether an attacker with a model can tell if a patient was in its training data.

The attack says yes if the model's loss on the patient is small (Yeom et al., CSF 2018). Its area under the ROC curve is
reported together with its true positive rates at few false alarms, as Carlini et al. (IEEE S&P 2022) recommend: an
attack that is certain about a few patients is a breach, even if overall it is no better than chance.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from models.attacks import Control, Interval, Membership
from models.loss import masked_bce
from models.network import SeverityNetwork, build_network
from models.network_settings import CHANNELS, LABELS, TABULAR, NetworkSettings

JOINT = "joint"
FALSE_ALARMS = (0.01, 0.1)
BOOTSTRAPS = 2000
CONTROL_AUROC = 0.8
CONTROL_PATIENTS, CONTROL_EPOCHS, CONTROL_SIDE = 32, 30, 16  # members, and as many others; voxels

Answers = tuple[NDArray[np.float32], NDArray[np.float32]]  # logits and targets, each (patients, labels)


def patient_losses(logits: NDArray[np.float32], targets: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Return each patient's loss, shape (patients,), for each label and jointly; NaN where no label is known.

    `logits`, `targets`: (patients, labels). The joint loss is `masked_bce` of one patient.
    """
    x, y = logits.astype(np.float64), targets.astype(np.float64)
    losses = np.logaddexp(0, x) - y * x
    known = ~np.isnan(losses)
    joint = np.where(known, losses, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    return {JOINT: joint, **{label: losses[:, column] for column, label in enumerate(LABELS)}}


def attack_figures(members: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the AUROC of the losses (patients,), and the share of members found at each of FALSE_ALARMS at most."""
    from sklearn.metrics import auc, roc_curve

    truth = np.repeat([1, 0], [len(members), len(others)])
    alarms, found, _ = roc_curve(truth, -np.concatenate([members, others]), drop_intermediate=False)
    return np.array([auc(alarms, found), *(found[alarms <= rate].max() for rate in FALSE_ALARMS)])


def attack_losses(members: NDArray[np.float64], others: NDArray[np.float64], *, seed: int = 0) -> Membership:
    """Attack with known losses (patients,), with percentile bootstrap intervals over patients, separately by side.

    Efron & Tibshirani 1993, ch. 13. At 1 % false alarms a narrow interval needs some hundreds of others.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        attack_figures(rng.choice(members, len(members)), rng.choice(others, len(others))) for _ in range(BOOTSTRAPS)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    figures = zip(attack_figures(members, others).tolist(), low.tolist(), high.tolist(), strict=True)
    auroc, strict, loose = (Interval(value=round(v, 4), low=round(lo, 4), high=round(hi, 4)) for v, lo, hi in figures)
    return Membership(
        members=len(members),
        others=len(others),
        auroc=auroc,
        tpr_at_1_percent_fpr=strict,
        tpr_at_10_percent_fpr=loose,
    )


def infer_membership(members: Answers, others: Answers, *, min_patients: int) -> dict[str, Membership]:
    """Attack with the joint loss and with the loss of each label.

    A loss that is known for fewer than `min_patients` on either side is omitted.
    """
    inside, outside = patient_losses(*members), patient_losses(*others)
    known = {name: (loss[~np.isnan(loss)], outside[name][~np.isnan(outside[name])]) for name, loss in inside.items()}
    return {name: attack_losses(*pair) for name, pair in known.items() if min(map(len, pair)) >= min_patients}


def control(settings: NetworkSettings, *, seed: int = 0) -> Control:
    """Attack a network that is overfitted to a few patients, with a tenth of their labels wrong.

    It is a small network with the norm of `settings`, on synthetic scans with CONTROL_SIDE voxels a side; some seconds.
    """
    small = settings.model_copy(update={"architecture": "resnet10", "code": "", "pooling": "", "widen_factor": 1 / 8})
    network = build_network(small, seed=seed)
    rng = np.random.default_rng(seed)
    members, others = _patients(rng), _patients(rng)
    _overfit(network, *members, rng)
    losses = [patient_losses(_logits(network, scans), targets.numpy())[JOINT] for scans, targets in (members, others)]
    return Control(value=float(attack_figures(*losses)[0]), needed=CONTROL_AUROC)


def _patients(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Make noise that is slightly brighter if the labels are 1, then invert every tenth label."""
    targets = rng.integers(0, 2, (CONTROL_PATIENTS, len(LABELS)))
    noise = rng.normal(0, 1, (CONTROL_PATIENTS, CHANNELS, *3 * (CONTROL_SIDE,)))
    scans = noise + 0.1 * targets[:, :, None, None, None]
    wrong = rng.permutation(targets.size) < targets.size / 10
    flipped = np.where(wrong.reshape(targets.shape), 1 - targets, targets)
    return torch.from_numpy(scans).float(), torch.from_numpy(flipped).float()


def _overfit(network: SeverityNetwork, scans: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator) -> None:
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(CONTROL_EPOCHS):
        for index in np.array_split(rng.permutation(len(scans)), len(scans) // 8):
            optimiser.zero_grad()
            masked_bce(network(scans[index], torch.zeros(len(index), TABULAR)), targets[index]).backward()
            optimiser.step()


@torch.inference_mode()
def _logits(network: SeverityNetwork, scans: torch.Tensor) -> NDArray[np.float32]:
    return network.eval()(scans, torch.zeros(len(scans), TABULAR)).numpy()
