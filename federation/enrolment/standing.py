"""How a site stands with its study: the name and the end of its node's certificate, for `node check` and `status`."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import NameOID

from federation.enrolment.join import RENEW_BEFORE, node_certificate
from pipeline.site.folder import UNNAMED, Site
from pipeline.system.check_line import Line

# The running node renews 30 days before the end and tries every day. Later than this, something prevents it.
WARN_BEFORE = RENEW_BEFORE - timedelta(days=7)


@dataclass(frozen=True)
class Standing:
    """What the node's certificate says. `name`: of this site in the study. `until`: the end, in UTC."""

    name: str
    until: datetime


def standing(site: Site) -> Standing | None:
    """Read the node's certificate. None if the site has not joined, or if the file is not a certificate."""
    try:
        certificate = x509.load_pem_x509_certificate(node_certificate(site).read_bytes())
        (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (OSError, ValueError):
        return None
    return Standing(str(name.value), certificate.not_valid_after_utc)


def line(site: Site) -> Line:
    """Check the node's certificate, for `node check`. The site's name in the study is in `detail` only."""
    area, what = "configuration", "node's certificate"
    found = standing(site)
    if found is None:
        if not node_certificate(site).exists():
            return Line(area, what, "skip", "the site has not joined a study")
        remedy = "Join again, with a new code from the study's office."
        return Line(area, what, "fail", "the file is not a certificate", remedy)
    left, until = found.until - datetime.now(UTC), f"{found.until:%Y-%m-%d}"
    if left <= timedelta():
        remedy = "Ask the study's office for a new code, and join again."
        return Line(area, what, "fail", f"expired on {until}", remedy)
    if left < WARN_BEFORE:
        remedy = "Start the node, which renews it, or run `fedthorax node renew`."
        return Line(area, what, "warn", f"ends on {until}", remedy)
    if site.name not in (found.name, UNNAMED):
        says, remedy = "the study knows this site by another name", "Ask the study's office whether this is intended."
        return Line(area, what, "warn", says, remedy, f"{found.name}, until {until}")
    return Line(area, what, "ok", f"valid until {until}")
