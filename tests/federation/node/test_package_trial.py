"""The sandbox works out the tensors of a package's networks. It sees no site, and what it says is not trusted."""

from pathlib import Path

import pytest

from federation.node import sandbox
from federation.node.package_trial import try_package
from models.own_packages import installed
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site, site_settings
from tests.helpers.own_package import CODE, PARTS, PARTS_CODE, write_package


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = init_site(tmp_path / "north", site_settings(None, name="north"))
    try:
        sandbox.available(made)
    except Refusal as refusal:
        pytest.skip(refusal.code)
    return made


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("code", "says"),
    [
        (CODE, ""),
        ("raise RuntimeError('no network here')\n", "E_NETWORK_TRIAL"),
        (
            CODE.replace(
                "super().__init__()", "super().__init__(); self.register_buffer('n', __import__('torch').zeros(9))"
            ),
            "E_NETWORK_TRIAL",
        ),
        (CODE + "\n\nimport sys; sys.stdout.write('{}')\n", ""),
        (CODE + "\n\nimport os; os.write(1, b'{}')\n", "E_NETWORK_TRIAL"),
        (CODE + "\n\nimport os\nwhile True: os.write(1, bytes(2**20))\n", "E_NETWORK_TRIAL"),
        (CODE + "\n\nfrom pathlib import Path; assert not Path(SITE).exists()\n", ""),
    ],
    ids=["plain", "fails", "buffer", "prints", "lies", "never ends", "looks for the site"],
)
def test_sandbox_works_out_the_plans_and_sees_no_site(site: Site, tmp_path: Path, code: str, says: str) -> None:
    text = code.replace("SITE", repr(str(site.folder)))
    found = installed("trial-networks", [write_package(tmp_path / "trial", "trial-networks", text)])
    if says:
        with pytest.raises(Refusal, match=says):
            try_package(site, found)
    else:
        plans = try_package(site, found)
        assert plans["tiny"].has_batch_norm and not plans["tiny_group"].has_batch_norm


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("code", "says"),
    [
        (PARTS_CODE, ""),
        (PARTS_CODE.replace("(losses * known).sum(dim=1) / known.sum(dim=1)", "losses.sum()"), "E_NETWORK_TRIAL"),
        (PARTS_CODE.replace("scan = scan.clone()", "scan = scan[:, 1:].clone()"), "E_NETWORK_TRIAL"),
    ],
    ids=["plain", "loss of no patient", "smaller scan"],
)
def test_sandbox_tries_losses_and_transforms(site: Site, tmp_path: Path, code: str, says: str) -> None:
    folder = write_package(tmp_path / "trial", "trial-parts", networks=(), parts=PARTS, parts_code=code)
    found = installed("trial-parts", [folder])
    if says:
        with pytest.raises(Refusal, match=says):
            try_package(site, found)
    else:
        assert try_package(site, found) == {}
