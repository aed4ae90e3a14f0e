"""Compute the features of a site's approved encoders with the release's own code; encoders hold no code."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from federation.approval.encoders import EncoderApprovals
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def encode_site(site: Site, progress: Progress) -> dict[str, int]:
    """Compute the features that are missing, of each approved encoder that fits the cohort's preprocessing.

    Returns by encoder's name how many scans were computed. `progress`: makes a progress bar with a title.

    Raises Refusal as `load_encoder`, `encode_cohort` and `Compute.open` do; E_APPROVALS, E_COHORT_FILE.
    """
    folders = EncoderApprovals(site).approved()
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
        compute = Compute.open(site.settings.compute, threads=site.settings.training.threads)
        with progress(f"computing the features of {encoder.card.name}") as report:
            done[encoder.card.sha256] = encode_cohort(site, encoder, report, compute=compute)
    return done
