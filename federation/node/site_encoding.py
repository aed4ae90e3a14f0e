"""Compute the features of a site's approved encoders with the release's own code; encoders hold no code."""

import json
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

from federation.approval.encoders import EncoderApprovals, encoder_of, tuned_of
from federation.approval.studies import StudyApprovals
from models.encoder_layers import STAGES, encoded_name
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def encode_site(site: Site, progress: Progress) -> dict[str, int]:
    """Compute the features that are missing, of each approved encoder that fits the cohort's preprocessing.

    For each approved study that tunes the last stages of such an encoder, the maps before these stages are computed
    too. Maps that no approved study needs any more are deleted. Returns by name (`encoded_name`) how many scans were
    computed. `progress`: makes a progress bar with a title.

    Raises Refusal as `load_encoder`, `encode_cohort` and `Compute.open` do; E_APPROVALS, E_COHORT_FILE.
    """
    folders = EncoderApprovals(site).approved()
    tuned = tuned_stages(site, {folder.name for folder in folders})
    with Cohort(site) as cohort:
        cohort.forget_maps({encoded_name(name, stages) for name, stages in tuned})
    if not folders:  # torch takes seconds to import
        return {}
    from models.compute import Compute
    from models.encoders import load_encoder, read_card
    from pipeline.cohort.encoding import encode_cohort, fits

    with Cohort(site) as cohort:
        folders = [folder for folder in folders if fits(cohort, read_card(folder))]
    done = {}
    for folder in folders:
        encoder = load_encoder(folder)
        name = encoder.card.sha256
        compute = Compute.open(site.settings.compute, threads=site.settings.training.threads)
        for stages in (0, *sorted(stages for sha256, stages in tuned if sha256 == name)):
            what = f"maps before stage {STAGES + 1 - stages}" if stages else "the features"
            with progress(f"computing {what} of {encoder.card.name}") as report:
                computed = encode_cohort(site, encoder, report, tuned_stages=stages, compute=compute)
                done[encoded_name(name, stages)] = computed
    return done


def tuned_stages(site: Site, names: Collection[str]) -> set[tuple[str, int]]:
    """Return which of these encoders approved studies tune, each with the number of its tuned stages.

    A study that gives the encoder other layers than its card is left out: the gateway refuses it. No study of the
    release tunes an encoder, so those approved by name in site.toml are left out. Raises Refusal E_APPROVALS.
    """
    approvals, encoders = StudyApprovals(site), EncoderApprovals(site)
    last = {decision.sha256: decision.decided for decision in approvals.decisions()}
    found = set()
    for digest, decided in last.items():
        settings = approvals.content(digest) if decided == "approved" else None
        if settings is not None:
            study = json.dumps(settings)
            name, (stages, layers) = encoder_of(study), tuned_of(study)
            if name in names and stages and encoders.has_layers(name, layers):
                found.add((name, stages))
    return found
