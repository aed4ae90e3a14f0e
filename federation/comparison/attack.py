"""Privacy attacks on a released model, measured at the hospital of its patients: `fedthorax study attack`.

Membership inference attacks the release itself: members are the training patients, non-members the test patients of
the same hospitals. Gradient inversion tries to reconstruct a scan from what the server sees in the first round, when
the weights are new and reveal most. It starts with the raw gradient of one scan, the easiest case, and ends with the
update of a whole round.

The results stay on this machine, in attacks.json and the model card, until a person passes them on.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from federation.client.site_tasks import load_examples, load_network, train_site
from federation.comparison.reasons import ATTACK_CONTROL, ATTACK_STUDY
from federation.protocol.flat_weights import pack
from federation.protocol.study_config import Study, StudyTable
from models import inversion, membership
from models.attacks import Attacks, Inversion
from models.compute import Compute
from models.description import Description
from models.inversion import Seen, compare, invert, seen_gradient, seen_update
from models.network import build_network
from models.reasons import MODEL_FORMAT
from models.refusal import Refusal
from models.release import Release, load_release
from models.settings import load_settings
from pipeline.cohort.dataset import Examples
from pipeline.doctor.reasons import TOO_FEW_PATIENTS
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site, Split
from pipeline.training.train import predict, train
from pipeline.training.train_settings import Schedule

BATCH = 8  # scans in the single step; the same number is reconstructed from a round's update
STEPS = 200  # iterations for each start of gradient inversion
VIEWS = 3  # the number of views that `_views` returns
AT_ONCE = 16  # scans in memory at a time

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class View:
    """What an attacker sees in one setting: its description, its scans and its network."""

    words: str
    seen: Seen
    network: nn.Module
    scans: Examples


def study_of(description: Description, file: Path | None) -> Study:
    """Return the study of a release: from `file`, or its own network and preprocessing with default training.

    Raises Refusal: E_ATTACK_STUDY if the file belongs to another study, or if a private release is given none;
    E_MODEL_FORMAT; and those of `load_settings`.
    """
    study = _study_of_release(description) if file is None else load_settings(file, Study)
    same = (
        study.network.model_dump() == description.network.model_dump()
        and study.preprocessing.model_dump(mode="json") == description.preprocessing
        and (study.privacy is None) == (description.privacy is None)
    )
    if not same:
        raise Refusal(ATTACK_STUDY)
    return study


def _study_of_release(description: Description) -> Study:
    try:
        preprocessing = Preprocessing.model_validate(description.preprocessing)
    except ValidationError as error:
        raise Refusal(MODEL_FORMAT) from error
    table = StudyTable(name="attack", rounds=max(1, description.rounds), sites=1, quorum=1)
    study = Study(study=table, preprocessing=preprocessing)
    # Releases of earlier versions may have networks that studies can no longer train.
    return study.model_copy(update={"network": description.network})


def measure(folder: Path, sites: Sequence[Site], study: Study, progress: Progress, *, steps: int = STEPS) -> Attacks:
    """Run both attacks with their controls. Gradient inversion uses only the first of `sites`.

    Raises Refusal: E_TOO_FEW_PATIENTS if a site has fewer training or test patients than its own minimum; those of
    `load_release` and `load_examples`.
    """
    first = sites[0].settings
    compute = Compute.open(first.compute, threads=first.training.threads)
    release = load_release(folder)
    members, others = ([_examples(site, study, split) for site in sites] for split in ("train", "test"))
    total, done = 3 + VIEWS * len(inversion.STARTS), 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    progress(0, total)
    membership_control = membership.control(study.network)
    tick()
    inversion_control = inversion.control()
    tick()
    least = max(site.settings.site.min_patients for site in sites)
    inferred = membership.infer_membership(
        _answers(release, members, compute), _answers(release, others, compute), min_patients=least
    )
    tick()
    typical = _mean_scan(others[0])
    drawn = [_invert(view, typical, steps, tick) for view in _views(sites[0], study, members[0])]
    return Attacks(
        release=release.sha256,
        software=f"fedthorax {version('fedthorax')}",
        membership_control=membership_control,
        membership=inferred,
        inversion_control=inversion_control,
        inversion=drawn,
    )


def require_controls(attacks: Attacks) -> None:
    """Check the controls. Raises Refusal E_ATTACK_CONTROL if an attack that must succeed failed."""
    for attack, control in (
        ("membership inference", attacks.membership_control),
        ("gradient inversion", attacks.inversion_control),
    ):
        if not control.holds:
            raise Refusal(ATTACK_CONTROL, attack=attack)


def _examples(site: Site, study: Study, split: Split) -> Examples:
    examples, needed = load_examples(site, study, split), site.settings.site.min_patients
    if len(examples) < needed:
        raise Refusal(TOO_FEW_PATIENTS, patients=len(examples), needed=needed)
    return examples


def _answers(release: Release, sites: Sequence[Examples], compute: Compute) -> membership.Answers:
    """Return the release's logits and the targets for the patients of all sites."""
    logits = [predict(release.network, examples, compute=compute) for examples in sites]
    return np.concatenate(logits), np.concatenate([examples.targets for examples in sites])


def _views(site: Site, study: Study, examples: Examples) -> list[View]:
    """Return what an attacker sees of a site in the first round, from the easiest case to the real update."""
    fresh = build_network(study.network, seed=study.study.seed)
    one, batch = Examples(examples.examples[:1]), Examples(examples.examples[:BATCH])
    still = copy.deepcopy(fresh).eval()
    raw = seen_gradient(still, *one.batch(np.arange(1), None))
    stepped = copy.deepcopy(fresh)
    settings = study.training.model_copy(update={"batch_size": BATCH})
    train(stepped, batch, settings, Schedule(0, 1, study.total_epochs), seed=study.study.seed)
    # The weights stay in this process, so the site's privacy budget is not charged.
    trained = train_site(site, study, *pack(fresh), round_number=1, charged=True)
    after = load_network(study, trained.arrays, trained.buffers)
    epochs = study.study.local_epochs
    return [
        View("raw gradient of one scan, no training step", raw, still, one),
        View(f"update after one step on {len(batch)} scans", seen_update(fresh, stepped), fresh.train(), batch),
        View(f"update after a round, {epochs} epochs on all its patients", seen_update(fresh, after), fresh, examples),
    ]


def _invert(view: View, typical: Tensor, steps: int, tick: Callable[[], None]) -> Inversion:
    """Return the best reconstruction of all starts, compared with every scan of the view."""
    count = min(BATCH, len(view.scans))
    _, tabular, targets = view.scans.batch(np.arange(count), None)
    drawn = []
    for start in range(len(inversion.STARTS)):
        shape = (typical.shape[1], typical.shape[2], typical.shape[3])
        drawn.append(invert(view.network, view.seen, tabular, targets, shape, steps=steps, start=start))
        tick()
    matches = (compare(torch.cat(drawn), scans, typical) for scans in _scans(view.scans))
    best = max(matches, key=lambda match: match.gain_db)
    return Inversion(
        seen=view.words,
        scans=len(view.scans),
        best_db=round(best.best_db, 2),
        constant_db=round(best.constant_db, 2),
        typical_db=round(best.typical_db, 2),
    )


def _scans(examples: Examples) -> Iterator[Tensor]:
    """Yield all scans in batches."""
    for index in np.array_split(np.arange(len(examples)), range(AT_ONCE, len(examples), AT_ONCE)):
        yield examples.scans(index)


def _mean_scan(examples: Examples) -> Tensor:
    """Return the mean of some scans, shape (2, slices, rows, columns)."""
    return torch.stack([scans.sum(dim=0) for scans in _scans(examples)]).sum(dim=0) / len(examples)
