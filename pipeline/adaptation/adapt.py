"""Derives a release from a signed one: batch-norm statistics from the site's own scans without labels.

OUT         the derived release: model.safetensors, model.json, card.md, model.sig
OUT.pub     the public key of the hospital, for the clinic

The key is SITE_DIR/keys/adaptation.key unless another one is given. The parent is not changed. No MONAI bundle is
written: a derived release stays in its hospital.
"""

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from models.adaptation import LEAST_SCANS, MOST_SCANS, Adaptation, derive
from models.compute import Compute
from models.description import Description
from models.familiarity import appearance_features
from models.network import SeverityNetwork
from models.network_settings import LABELS
from models.norm_statistics import adapt_statistics, norm_layers, require_derived
from models.reasons import ADAPT_NETWORK, MODEL_FORMAT
from models.refusal import Refusal
from models.release import Release, load_release, save_release
from models.signature import fingerprint, new_private_key, public_key, sign
from pipeline.adaptation import reasons
from pipeline.adaptation.judgement import judge
from pipeline.cohort.dataset import Examples
from pipeline.cohort.reasons import PREPROCESSING
from pipeline.cohort.store import Cohort
from pipeline.cohort.tensor_files import load_tensor
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.site.folder import Site
from pipeline.site.withdrawn import Withdrawn
from pipeline.system.atomic_files import write_durably
from pipeline.system.work_folder import work_folder
from pipeline.training.train import predict

KEY = Path("keys") / "adaptation.key"
MOST_UNFAMILIAR = 0.2  # share of the scans that may be outside the release's limit; 0.01 is usual


@dataclass(frozen=True)
class Adapted:
    """A derived release. `public_key`: the hospital's, beside the folder; `key_sha256`: its fingerprint."""

    folder: Path
    public_key: Path
    key_sha256: str
    release: Release

    def to_json(self) -> dict[str, Any]:
        description = self.release.description
        assert description.adaptation is not None
        return {
            "folder": str(self.folder),
            "sha256": self.release.sha256,
            "public_key": str(self.public_key),
            "key_sha256": self.key_sha256,
            "adaptation": description.adaptation.model_dump(mode="json"),
            "operating_points": {label: sorted(points) for label, points in description.operating_points.items()},
        }


def adapt(
    site: Site,
    folder: Path,
    trusted_keys: Sequence[Path],
    out: Path,
    *,
    key: Path | None = None,
    compute: Compute,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Adapted:
    """Adapt the release in `folder` to the site, and write the derived release to `out`, completely or not at all.

    Parameters
    ----------
    site : Site
        The site, with its patients without labels.
    folder : Path
        The parent release.
    trusted_keys : sequence of Path
        Public keys, at least one; one of them must have signed the parent.
    out : Path
        A new folder.
    key : Path or None
        The hospital's private key. Default: SITE_DIR/keys/adaptation.key, made if it is missing.
    compute : Compute
        The processor; all is computed in float32.
    progress : callable
        Called with the number of layers that are done and their number.

    Returns
    -------
    Adapted
        The derived release, read again from the disk and compared with its parent.

    Raises
    ------
    Refusal
        E_ADAPT_UNSIGNED, E_ADAPT_PARENT, E_ADAPT_NETWORK, E_ADAPT_TOO_FEW, E_ADAPT_UNFAMILIAR, E_ADAPT_WORSE,
        E_ADAPT_CHANGED, E_ADAPT_EXISTS, E_PREPROCESSING, E_COHORT_FILE, E_SIGNING_KEY, and those of `load_release` and
        `Compute.use`.
    """
    out = out.absolute()
    public = out.with_name(f"{out.name}.pub")
    if os.path.lexists(out) or os.path.lexists(public):
        raise Refusal(reasons.ADAPT_EXISTS)
    parent = load_release(folder, trusted_keys)
    settings = _require_adaptable(parent)
    compute = compute.exact()
    patients = _patients(site)
    try:
        scans, found, unfamiliar = _scans(site, parent, settings_digest(settings))
        network = copy.deepcopy(parent.network)
        adapt_statistics(network, lambda: _read(scans), compute=compute, progress=progress)
        before, after, targets = _on_validation(site, parent, network, settings_digest(settings), compute)
    except Refusal:
        _require_same(site, patients)  # the scan of a patient who withdrew is no longer there
        raise
    judged, points = judge(parent.description, before, after, targets)
    assert parent.signed_by is not None
    adaptation = Adaptation(
        parent=parent.sha256,
        parent_signed_by=parent.signed_by,
        site=site.name,
        adapted_on=date.today(),
        software=version("fedthorax"),
        scans=len(scans),
        found=found,
        unfamiliar=unfamiliar,
        judged=judged,
    )
    key = key or _own_key(site)
    public_pem = public_key(key)
    out.parent.mkdir(parents=True, exist_ok=True)
    with work_folder(out) as work:
        written, handed_out = work / out.name, work / public.name
        handed_out.write_bytes(public_pem)
        save_release(written, network, derive(parent.description, adaptation, points))
        sign(written, key)
        derived = load_release(written, [handed_out])
        require_derived(derived, parent)  # as every clinic does
        _require_same(site, patients)
        handed_out.rename(public)
        written.rename(out)
    return Adapted(out, public, fingerprint(public), derived)


def _require_adaptable(parent: Release) -> Preprocessing:
    """Return the preprocessing of a release that may be adapted."""
    description = parent.description
    if parent.signed_by is None:
        raise Refusal(reasons.ADAPT_UNSIGNED)
    if description.adaptation is not None:
        raise Refusal(reasons.ADAPT_PARENT, problem="it was adapted before")
    if description.provenance is None:
        raise Refusal(reasons.ADAPT_PARENT, problem="it does not say what it was trained on")
    if description.network.encoder:
        raise Refusal(ADAPT_NETWORK)
    norm_layers(parent.network)
    if description.familiarity is None:
        raise Refusal(reasons.ADAPT_PARENT, problem="it has no limit for unfamiliar scans")
    try:
        return Preprocessing.model_validate(description.preprocessing)
    except ValidationError as error:
        raise Refusal(MODEL_FORMAT) from error


def _scans(site: Site, parent: Release, settings: str) -> tuple[list[Path], int, int]:
    """Return the scans to use, how many without a label there are, and how many of these are unfamiliar.

    Of more than MOST_SCANS, the site's key decides which: nobody who sends scans can.
    """
    with Cohort.read(site) as cohort:
        rows, prepared = cohort.unlabelled(), set(cohort.prepared(settings))
        tensors = {row.pseudonym: cohort.tensors / row.tensor for row in rows}
    if any(row.tensor not in prepared for row in rows):
        raise Refusal(PREPROCESSING)
    _require_enough(len(tensors))
    familiar = {pseudonym: path for pseudonym, path in tensors.items() if _is_familiar(parent.description, path)}
    unfamiliar = len(tensors) - len(familiar)
    if unfamiliar > MOST_UNFAMILIAR * len(tensors):
        percent = round(100 * MOST_UNFAMILIAR)
        raise Refusal(reasons.ADAPT_UNFAMILIAR, unfamiliar=unfamiliar, scans=len(tensors), percent=percent)
    _require_enough(len(familiar))
    order = sorted(familiar, key=lambda pseudonym: site.keyed("adapt", f"{parent.sha256}|{pseudonym}"))
    return [familiar[pseudonym] for pseudonym in order[:MOST_SCANS]], len(tensors), unfamiliar


def _patients(site: Site) -> dict[str, str]:
    """Return the tensors of the patients who are used, by pseudonym: those without labels, and those to judge by."""
    with Cohort.read(site) as cohort:
        judging = {row.pseudonym: row.tensor for row in cohort.patients() if row.split == "validation"}
        return judging | {row.pseudonym: row.tensor for row in cohort.unlabelled()}


def _require_same(site: Site, before: Mapping[str, str]) -> None:
    """Raise Refusal E_ADAPT_CHANGED unless all these patients are still there: one who withdrew must not remain in it.

    The passes take long, so they hold no lock: a withdrawal must not wait for them. It writes its list first, so one
    that has begun counts. New patients make no difference.
    """
    withdrawn = Withdrawn(site)
    if before.items() - _patients(site).items() or any(pseudonym in withdrawn for pseudonym in before):
        raise Refusal(reasons.ADAPT_CHANGED)


def _require_enough(scans: int) -> None:
    if scans < LEAST_SCANS:
        raise Refusal(reasons.ADAPT_TOO_FEW, scans=scans, needed=LEAST_SCANS)


def _is_familiar(parent: Description, tensor: Path) -> bool:
    assert parent.familiarity is not None
    return parent.familiarity.is_familiar(parent.familiarity.distance(appearance_features(_load(tensor))))


def _load(tensor: Path) -> NDArray[np.float32]:
    scan: NDArray[np.float32] = load_tensor(tensor).astype(np.float32)
    return scan


def _read(scans: Sequence[Path]) -> Iterator[Tensor]:
    return (torch.from_numpy(_load(path)) for path in scans)


def _on_validation(
    site: Site, parent: Release, network: SeverityNetwork, settings: str, compute: Compute
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return logits before and after, and targets of the labelled validation patients, shape (patients, labels)."""
    with Cohort.read(site) as cohort:
        # A site may have labelled patients of another preprocessing, if it works for another study: none is judged.
        fits = not cohort.settings() - {settings}
        examples = Examples(cohort.examples("validation") if fits else [])
    if not len(examples):
        empty = np.zeros((0, len(LABELS)), np.float32)
        return empty, empty, empty
    before, after = (predict(each, examples, compute=compute) for each in (parent.network, network))
    return before, after, examples.targets


def _own_key(site: Site) -> Path:
    key = site.folder / KEY
    if not key.exists():
        write_durably(key, new_private_key())  # readable only by its owner
    return key
