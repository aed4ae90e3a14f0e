"""Whether a site has the labels that a study learns from."""

from federation.protocol.reasons import SITE_UNLABELLED
from models.refusal import Refusal
from pipeline.site.folder import SiteSettings


def require_labels(settings: SiteSettings, *, pretrains: bool) -> None:
    """Check that the site gives labels, unless the study is a pretraining. Raises Refusal E_SITE_UNLABELLED.

    This depends on site.toml and the study alone, not on the cohort, so the refusal says nothing about patients.
    """
    if not (settings.has_labels or pretrains):
        raise Refusal(SITE_UNLABELLED)
