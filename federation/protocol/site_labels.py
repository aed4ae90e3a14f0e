"""Whether a site has the labels that a study learns from."""

from federation.protocol.reasons import SITE_UNLABELLED
from models.refusal import Refusal
from pipeline.site.folder import SiteSettings


def require_labels(settings: SiteSettings) -> None:
    """Check that the site gives labels: all studies learn from them. Raises Refusal E_SITE_UNLABELLED.

    This depends on site.toml alone, not on the cohort, so the refusal says nothing about patients.
    """
    if not settings.has_labels:
        raise Refusal(SITE_UNLABELLED)
