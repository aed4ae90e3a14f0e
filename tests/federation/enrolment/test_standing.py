"""What `node check` and `node status` say about a site's certificate."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from federation.enrolment.certificates import create_node_key, load_node_key, open_authority
from federation.enrolment.join import node_certificate
from federation.enrolment.standing import line
from federation.node.start import node_status
from federation.server.start import init_server
from federation.superlink.control import ca_certificate
from pipeline.site.folder import Site, init_site, site_settings


def joined(tmp_path: Path, *, days_left: float = 300, name: str = "north") -> Site:
    """A site named north with a certificate for `name`."""
    init_server(tmp_path / "server")
    site = init_site(tmp_path / "site", site_settings(None, name="north"))
    create_node_key(site.node_key)
    begin = datetime.now(UTC) - timedelta(days=365 - days_left)
    authority = open_authority(ca_certificate(tmp_path / "server").parent)
    made = authority.node_certificate(load_node_key(site.node_key).public_key(), name, now=begin)
    node_certificate(site).write_bytes(made.public_bytes(Encoding.PEM))
    return site


@pytest.mark.parametrize(
    ("days_left", "name", "status", "says"),
    [
        (300, "north", "ok", "valid until"),
        (20, "north", "warn", "ends on"),
        (-1, "north", "fail", "expired"),
        (300, "west", "warn", "another name"),
    ],
)
def test_check_says_when_the_certificate_ends_and_for_whom_it_is(
    tmp_path: Path, days_left: float, name: str, status: str, says: str
) -> None:
    found = line(joined(tmp_path, days_left=days_left, name=name))
    assert found.status == status
    assert says in found.says
    assert bool(found.remedy) == (status != "ok")
    assert "west" not in found.says + found.remedy, "the page of the check may be mailed"


def test_site_that_has_not_joined_has_no_certificate_to_check(tmp_path: Path) -> None:
    site = init_site(tmp_path / "site", site_settings(None, name="north"))
    assert line(site).status == "skip"
    node_certificate(site).write_text("damaged")
    assert line(site).status == "fail"


def test_status_shows_version_certificate_name_and_last_ingest(tmp_path: Path) -> None:
    site = joined(tmp_path, name="west")
    before = node_status(site)
    assert before["version"]
    assert before["last_ingest"] is None
    assert before["name_in_study"] == "west"
    assert datetime.fromisoformat(before["certificate_until"]) > datetime.now(UTC) + timedelta(days=290)
    (site.cohort_folder / "refusals.csv").write_text("")
    assert node_status(site)["last_ingest"] is not None
