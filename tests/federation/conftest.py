"""Fixtures that the tests of approvals and of their commands share."""

from pathlib import Path

import pytest

from federation.approval.approvals import Approvals
from pipeline.site import Site, init_site, site_settings


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", site_settings(None, name="hospital-a"))


@pytest.fixture
def approvals(site: Site) -> Approvals:
    return Approvals(site)
