"""The shortcut audit of one site: does the model use the scanner instead of the lungs?

Models of chest images have recognised the hospital, the scanner or a metal marker instead of the disease
(Zech et al., PLoS Med 2018; 15:e1002683. DeGrave, Janizek & Lee, Nat Mach Intell 2021; 3:610). Three questions:

- Do acquisition tags alone predict the label (`tags_auroc`)? Then a shortcut exists, whether or not the model uses it.
- Does the model predict severity with the lungs blanked out (`outside_auroc`)? Then it uses a shortcut.
- Do the model's features identify the scanner (`scanner_accuracy`) and the site (`moments`, `assigned_shares`)?
  They nearly always do, which is not an error by itself: it shows that a shortcut is possible.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from torch import Tensor

from models.compute import PROCESSOR, Compute
from models.familiarity import APPEARANCE_SIZE, Moments, appearance_features
from models.network import SeverityNetwork
from models.network_settings import LABELS, TABULAR
from pipeline.cohort.dataset import Examples
from pipeline.evaluation.discrimination import Auroc, auroc, classes_of, delong_variance, logit_interval
from pipeline.preprocessing.measures import Measures

FOLDS = 5
PERMUTATIONS = 1000
RIDGE = 1.0  # in units of one patient, with standardised tags
WORDS = ("manufacturer", "kernel", "sharpness", "position")
NUMBERS = ("slice_mm", "pixel_mm", "thickness_mm", "slices")
BLANK_BEYOND = 0.05  # blanked margin around the lungs' hull, as a share of the scan's sides: about 12 mm
SOFT_TISSUE = (0.33, 0.93)  # -200 to 160 HU in the default window
SOFT_TISSUE_AT = 0.73  # the common level: muscle

Features = NDArray[np.float32]
_BATCH = 16


@dataclass(frozen=True)
class ScannerAccuracy:
    """Balanced accuracy of classifying the `scanners` of one site; `chance` is 1 / `scanners`."""

    value: float
    chance: float
    scanners: int


def shortcut_figures(
    network: SeverityNetwork, splits: Mapping[str, Examples], *, min_patients: int, compute: Compute = PROCESSOR
) -> dict[str, float]:
    """Return the metrics of the audit that may leave the site.

    `splits`: the site's patients by split: tags and scanners cover all of them, blanked lungs those that the training
    did not use. A split of which one class has fewer than `min_patients` is left out of the metrics of that label: a
    metric of several splits, next to those of the others alone, would reveal the classes of the small one.
    Names: auroc_<label>_tags and auroc_severe_outside (not with a frozen encoder), each with _low and _high;
    scanner_from_embedding and scanner_chance. Raises Refusal: those of `Compute.use`.
    """
    measured = [Examples([example for example in each.examples if example.measures]) for each in splits.values()]
    held_out = [each for name, each in splits.items() if name != "train"]
    found = {
        f"auroc_{label}_tags": tags_auroc(_large(measured, column, min_patients), column)
        for column, label in enumerate(LABELS)
    }
    severe = LABELS.index("severe")
    if not any(each.has_features for each in held_out):  # of a scan with blanked lungs, no features were computed
        found["auroc_severe_outside"] = outside_auroc(network, _large(held_out, severe, min_patients), compute=compute)
    figures: dict[str, float] = {}
    for name, each in found.items():
        if math.isfinite(each.value):
            figures |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
    everybody = Examples([example for each in splits.values() for example in each.examples])
    features = embed(network, everybody, compute=compute)
    if accuracy := scanner_accuracy(features, everybody, min_patients=min_patients):
        figures |= {"scanner_from_embedding": accuracy.value, "scanner_chance": accuracy.chance}
    return figures


def _large(splits: Sequence[Examples], column: int, min_patients: int) -> Examples:
    """Return the patients of the splits in which both classes of a label reach `min_patients`."""
    large = [each for each in splits if min(classes_of(each.targets[:, column])) >= min_patients]
    return Examples([example for each in large for example in each.examples])


# --- tags -------------------------------------------------------------------------------------------------


def tags_auroc(patients: Examples, column: int) -> Auroc:
    """Return the AUROC of acquisition tags alone for the label of that column.

    Undefined if no tag varies, or if a fold would have one patient of a class.

    Ridge regression on one-hot words and standardised numbers, cross-validated: least squares on a 0/1 label ranks as
    Fisher's discriminant does (Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, ex. 4.2), and
    solves for a thousand labels at once. Measures of the body (volume and density of the lungs) are excluded. The value
    is the mean of the folds' AUROCs. The folds share their training patients, so
    DeLong's variance alone is too small; the interval takes, on the logit scale, the larger of that and of the spread
    about chance when labels are permuted within folds (Ojala & Garriga, J Mach Learn Res 2010; 11:1833).
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import StratifiedKFold

    targets = patients.targets[:, column]
    known = [(e.measures, int(t)) for e, t in zip(patients.examples, targets, strict=True) if e.measures and t >= 0]
    labels = np.array([label for _, label in known], dtype=np.int64)
    rarer = int(min(labels.sum(), len(labels) - labels.sum()))
    seen = {tuple(getattr(measures, name) for name in WORDS + NUMBERS) for measures, _ in known}
    if rarer < 2 * FOLDS or len(seen) < 2:
        return Auroc.undefined(len(labels))
    tags = _encode([measures for measures, _ in known])
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(tags, labels))
    rng = np.random.default_rng(0)
    drawn = np.repeat(labels[:, None], 1 + PERMUTATIONS, axis=1)  # the first column is not permuted
    for _, test in folds:
        drawn[test, 1:] = rng.permuted(drawn[test, 1:], axis=0)
    scores = np.zeros(drawn.shape)
    for train, test in folds:
        scores[test] = Ridge(alpha=RIDGE).fit(tags[train], drawn[train]).predict(tags[test])
    values = np.mean([_aurocs(scores[test], drawn[test]) for _, test in folds], axis=0)
    value, pooled = float(values[0]), float(_aurocs(scores[:, :1], drawn[:, :1])[0])
    of_patients = delong_variance(scores[:, 0], labels) / max(pooled * (1 - pooled), 1e-9) ** 2
    permuted = logit(values[1:].clip(0.5 / len(labels), 1 - 0.5 / len(labels)))  # 0 and 1 have no logit
    of_logit = max(of_patients, float(np.mean(permuted**2)))
    low, high = logit_interval(value, of_logit * (value * (1 - value)) ** 2, rarer=rarer)
    return Auroc(value, low, high, len(labels))


def _encode(measures: list[Measures]) -> NDArray[np.float64]:
    """Return one-hot words and numbers, standardised; unknown numbers are replaced by the mean."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    words = OneHotEncoder(sparse_output=False).fit_transform([[getattr(m, name) for name in WORDS] for m in measures])
    rows = np.array([[getattr(m, name) for name in NUMBERS] for m in measures], dtype=np.float64)
    numbers = SimpleImputer(keep_empty_features=True).fit_transform(rows)
    scaled: NDArray[np.float64] = StandardScaler().fit_transform(np.hstack([words, numbers]))
    return scaled


def _aurocs(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the AUROC of each column by ranks (Mann-Whitney).

    Both arrays have the shape (patients, columns), with the same number of positives in each column.
    """
    from scipy.stats import rankdata

    positive = labels.sum(axis=0)
    above = (rankdata(scores, axis=0) * labels).sum(axis=0) - positive * (positive + 1) / 2
    found: NDArray[np.float64] = above / (positive * (len(labels) - positive))
    return found


# --- blanked lungs ----------------------------------------------------------------------------------------


def outside_auroc(network: SeverityNetwork, held_out: Examples, *, compute: Compute = PROCESSOR) -> Auroc:
    """Return the AUROC of the model's score for `severe` with equal lungs for all, and without age and sex.

    The lungs are those of the mean scan of these patients. With a constant instead, the input resembles no scan that
    the network knows, and in trials this hid a learned mark. The score as a function of the outside alone is a partial
    dependence (Friedman, Ann Stat 2001; 29:1189). Undefined if a score is not finite.
    """
    indices = _indices(held_out, compute)
    if not indices:
        return Auroc.undefined(0)
    typical = torch.stack([held_out.scans(index).sum(dim=0) for index in indices]).sum(dim=0) / len(held_out)
    with compute.use(network):
        found = [_score_outside(network, held_out, index, typical.numpy(), compute) for index in indices]
    scores = np.concatenate(found)
    if not np.isfinite(scores).all():
        return Auroc.undefined(len(scores))
    return auroc(scores, held_out.targets[:, LABELS.index("severe")])


@torch.inference_mode()
def _score_outside(
    network: SeverityNetwork,
    examples: Examples,
    index: NDArray[np.int64],
    typical: NDArray[np.float32],
    compute: Compute,
) -> NDArray[np.float32]:
    blanked = torch.stack([torch.from_numpy(blank_lungs(scan.numpy(), typical)) for scan in examples.scans(index)])
    network.eval()
    with compute.autocast():
        logits = network(compute.move(blanked), compute.move(torch.zeros(len(index), TABULAR)))  # age and sex: missing
    scores: NDArray[np.float32] = logits[:, LABELS.index("severe")].cpu().numpy()
    return scores


def blank_lungs(scan: NDArray[np.float32], typical: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace the lungs and the mask of a scan, shape (2, slices, rows, columns), by those of `typical`.

    Soft tissue outside is shifted to a common level, because preprocessing has shifted the scan by its lungs' density.
    """
    window, mask = scan
    hidden = lung_hull(mask)
    low, high = SOFT_TISSUE
    tissue = window[~hidden & (window > low) & (window < high)]
    shift = SOFT_TISSUE_AT - float(np.median(tissue)) if tissue.size else 0.0
    levelled = np.where(window > low, np.clip(window + shift, -1, 1), window)
    return np.stack([np.where(hidden, typical[0], levelled), typical[1]]).astype(np.float32)


def lung_hull(mask: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the convex hull of both lungs with a margin of BLANK_BEYOND.

    The margin is large because consolidation at the pleura is not always in the mask.
    """
    from scipy.spatial import ConvexHull

    points = np.argwhere(mask > 0) / mask.shape
    faces = ConvexHull(points).equations.astype(np.float32)  # unit normals outwards, and offsets
    rows, columns = np.meshgrid(*(np.arange(n, dtype=np.float32) / n for n in mask.shape[1:]), indexing="ij")
    in_plane = faces[:, 1, None] * rows.ravel() + faces[:, 2, None] * columns.ravel() + faces[:, 3, None]
    heights = np.arange(len(mask), dtype=np.float32) / len(mask)
    beyond = [(in_plane + faces[:, :1] * height).max(axis=0) for height in heights]  # slice by slice, to save memory
    return np.stack(beyond).reshape(mask.shape) <= BLANK_BEYOND


# --- features ---------------------------------------------------------------------------------------------


def _indices(examples: Examples, compute: Compute = PROCESSOR) -> list[NDArray[np.int64]]:
    size = compute.at_most(_BATCH)
    return np.array_split(np.arange(len(examples)), range(size, len(examples), size)) if len(examples) else []


@torch.inference_mode()
def embed(network: SeverityNetwork, examples: Examples, *, compute: Compute = PROCESSOR) -> Features:
    """Return the backbone's features, without age and sex; shape (patients, features).

    Raises Refusal: those of `Compute.use`.
    """
    network.eval()
    found: list[Tensor] = []
    with compute.use(network):
        for index in _indices(examples, compute):
            given = compute.move(examples.batch(index, None)[0])
            with compute.autocast():
                found.append(network.of_scans(given).float().cpu())
    return torch.cat(found).numpy() if found else np.zeros((0, network.head.in_features), dtype=np.float32)


def appearance(examples: Examples) -> Features:
    """Return the appearance features of the scans; shape (patients, APPEARANCE_SIZE)."""
    found = [appearance_features(scan.numpy()) for index in _indices(examples) for scan in examples.scans(index)]
    return np.array(found, dtype=np.float32).reshape(-1, APPEARANCE_SIZE)


def moments(features: Features) -> Moments:
    """Return mean and variance (n - 1) of each feature over at least two patients; float32."""
    return Moments(
        mean=features.mean(axis=0, dtype=np.float64).astype(np.float32),
        variance=features.var(axis=0, ddof=1, dtype=np.float64).astype(np.float32),
        patients=len(features),
    )


def assigned_shares(embeddings: Features, discriminants: Features, probed: int) -> list[float]:
    """Return the share of patients assigned to each of the first `probed` sites.

    `discriminants`: a flat array; for each site one weight per feature and a constant, see
    `shortcut_audit.discriminants`.
    A patient is assigned to the site with the largest discriminant.
    """
    table = discriminants.reshape(-1, embeddings.shape[1] + 1)[:probed].astype(np.float64)
    nearest = (embeddings @ table[:, :-1].T + table[:, -1]).argmax(axis=1)
    return [float(share) for share in np.bincount(nearest, minlength=probed) / len(embeddings)]


def scanner_accuracy(embeddings: Features, patients: Examples, *, min_patients: int) -> ScannerAccuracy | None:
    """Return the cross-validated accuracy of classifying the site's scanners (manufacturer, kernel) by features.

    Logistic regression over scanners with at least `min_patients` patients; None if there are fewer than two, or if a
    feature is not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = [f"{m.manufacturer} {m.kernel}" if (m := e.measures) else "" for e in patients.examples]
    counted = Counter(name for name in names if name)
    large = {name for name, count in counted.items() if count >= max(min_patients, FOLDS)}
    if len(large) < 2 or not np.isfinite(embeddings).all():
        return None
    kept = np.array([name in large for name in names])
    scanners = np.array(names)[kept]
    reader = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    predicted = cross_val_predict(reader, embeddings[kept], scanners, cv=folds)
    return ScannerAccuracy(float(balanced_accuracy_score(scanners, predicted)), 1 / len(large), len(large))
