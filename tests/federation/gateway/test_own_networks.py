"""A package behind the real gateway, played by a server that may send anything: its network, loss and transform."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from federation.approval.packages import PackageApprovals
from federation.gateway.schema import schema_of
from federation.protocol.package_files import handed_over
from federation.protocol.study_config import Study
from models import own_code
from models.network import SeverityNetwork, build_network
from models.network_layers import plan_of
from models.own_packages import Kind, Package, installed
from tests.attacks.cohort import PREPROCESSING
from tests.attacks.rig import Rig, own_study, rig
from tests.helpers.own_package import CODE, PARTS_CODE, write_package

pytestmark = pytest.mark.slow


def packed(folder: Path, name: str, code: str = CODE) -> Package:
    return installed(name, [write_package(folder, name, code)])


def study(package: Package, network: str = "tiny", **changes: object) -> Study:
    table = {"architecture": f"{package.name}:{network}", "code": package.sha256, **changes}
    settings = {"name": "trial", "rounds": 20, "sites": 1, "quorum": 1, "local_epochs": 1}
    return Study.model_validate(
        {"study": settings, "network": table, "preprocessing": PREPROCESSING.model_dump(), "evaluation": {}}
    )


def approve(attacked: Rig, package: Package) -> None:
    """Approve a package as `fedthorax node approve-network` does; here the plans need no sandbox."""
    plans = {}
    own_code.allow(package)
    for name in package.networks:
        layers, plans[name] = own_code.build(f"{package.name}:{name}", package.sha256)
        assert plan_of(layers) == plans[name]
    PackageApprovals(attacked.hospital.site).approve(package, plans, by="the hospital")


def test_unapproved_package_is_refused_before_its_code_is_seen(tmp_path: Path) -> None:
    package = packed(tmp_path, "unapproved-nets", "raise SystemExit('this code ran')\n")
    with rig() as attacked:
        attacked.talk_into(study(package))
        assert attacked.ask("query.handshake", study(package)).code == "E_NETWORK_REFUSED"
        assert not handed_over(attacked.hospital.site.folder, package.sha256).exists()
    assert "unapproved_nets" not in sys.modules


def test_approved_network_trains_and_stays_within_its_bounds(tmp_path: Path) -> None:
    package = packed(tmp_path, "honest-nets")
    trial = study(package, pooling="gated")
    with rig() as attacked:
        approve(attacked, package)
        assert attacked.ask("query.handshake", trial).code == "E_STUDY_REFUSED", "the study needs an approval too"
        attacked.talk_into(trial)
        model = build_network(trial.network, seed=trial.study.seed)
        for number in (1, 2):
            model = attacked.must("train", trial, model, round_number=number).network(trial)
        for name in ("backbone.maps.blocks.2.0.weight", "backbone.maps.blocks.1.1.weight", "head.weight"):
            hostile = spoiled(model, name, lambda weight: weight[:1].mul_(-1.0) if weight.ndim > 2 else weight.mul_(9))
            assert attacked.ask("train", trial, hostile, round_number=3).code == "E_MODEL_DRIFT", name
        assert attacked.ask("train", trial, model, round_number=3).code == ""
        assert attacked.ask("evaluate.embed", trial, model).code == ""
        PackageApprovals(attacked.hospital.site).revoke(package.sha256, by="the hospital")
        assert attacked.ask("train", trial, model, round_number=4).code == "E_NETWORK_REFUSED"


def spoiled(model: SeverityNetwork, name: str, change: Callable[[torch.Tensor], object]) -> SeverityNetwork:
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other.get_parameter(name))
    return other


def test_first_model_must_be_the_seeds(tmp_path: Path) -> None:
    """Its weights come from the seed and the plan; the package's own code draws none of them."""
    own_seed = CODE.replace("return Tiny()", "import torch; torch.manual_seed(7); return Tiny()")
    package = packed(tmp_path, "seeded-nets", own_seed)
    trial = study(package)
    with rig() as attacked:
        approve(attacked, package)
        attacked.talk_into(trial)
        other = build_network(trial.network, seed=trial.study.seed + 1)
        assert attacked.ask("train", trial, other).code == "E_MODEL_FIRST"
        assert attacked.ask("train", trial, build_network(trial.network, seed=trial.study.seed)).code == ""


def test_bytes_that_change_after_the_approval_are_refused(tmp_path: Path) -> None:
    package = packed(tmp_path, "tampered-nets")
    trial = study(package)
    with rig() as attacked:
        site = attacked.hospital.site
        approve(attacked, package)
        attacked.talk_into(trial)
        (site.folder / "networks" / f"{package.sha256}.json").write_bytes(package.content + b"\n")
        assert attacked.ask("query.handshake", trial).code == "E_NETWORK_CHANGED"


def test_gateway_knows_the_arrays_without_the_code(tmp_path: Path) -> None:
    """The process that works out the schema has the plan alone: the package is nowhere on its path."""
    package = packed(tmp_path, "schema-nets")
    with rig() as attacked:
        approve(attacked, package)
        site = attacked.hospital.site
        (site.folder / "networks" / f"{package.sha256}.json").unlink()
        schema = schema_of(study(package).model_dump_json(), tmp_path / "schemas", site.folder / "begins-from")
    network = build_network(study(package).network, seed=1)
    assert schema.features == 32
    assert schema.arrays["weights"].length == sum(w.numel() for w in network.parameters())


def packed_parts(folder: Path, name: str, code: str = PARTS_CODE) -> Package:
    """A package with a loss `focal` and a transform `dimmed`."""
    parts: dict[Kind, tuple[str, ...]] = {"loss": ("focal",), "transform": ("dimmed",)}
    return installed(name, [write_package(folder, name, networks=(), parts=parts, parts_code=code)])


def study_of_parts(package: Package, **changes: object) -> Study:
    """A study with the release's smallest network, and a package's loss and transform."""
    training = {
        "loss": f"{package.name}:focal",
        "loss_code": package.sha256,
        "transform": f"{package.name}:dimmed",
        "transform_code": package.sha256,
    }
    return own_study(training={**training, **changes})


def test_loss_and_transform_need_the_approval_of_their_package(tmp_path: Path) -> None:
    package = packed_parts(tmp_path, "honest-parts")
    trial = study_of_parts(package)
    model = build_network(trial.network, seed=trial.study.seed)
    with rig() as attacked:
        attacked.talk_into(trial)
        assert attacked.ask("query.handshake", trial).code == "E_NETWORK_REFUSED"
        PackageApprovals(attacked.hospital.site).approve(package, {}, by="the hospital")
        unknown = study_of_parts(package, loss="honest-parts:unknown")
        attacked.talk_into(unknown)
        assert attacked.ask("query.handshake", unknown).code == "E_NETWORK_REFUSED"
        stronger = study_of_parts(package, loss_settings={"gamma": 9.0})
        assert attacked.ask("query.handshake", stronger).code == "E_STUDY_REFUSED", "settings are in the digest"
        answer = attacked.must("train", trial, model)
        assert "train_loss" not in answer.metrics, "the package could write what it likes into it"
        kept = attacked.hospital.site.folder / "networks" / f"{package.sha256}.json"
        kept.write_bytes(package.content + b"\n")
        assert attacked.ask("query.handshake", trial).code == "E_NETWORK_CHANGED"


def test_failing_loss_sends_a_code_and_nothing_of_the_patient(tmp_path: Path) -> None:
    text = PARTS_CODE.replace(
        "    losses = F.bin", "    raise RuntimeError('label ' + str(targets.tolist()))\n    losses = F.bin"
    )
    package = packed_parts(tmp_path, "failing-parts", text)
    trial = study_of_parts(package)
    with rig() as attacked:
        PackageApprovals(attacked.hospital.site).approve(package, {}, by="the hospital")
        attacked.talk_into(trial)
        model = build_network(trial.network, seed=trial.study.seed)
        assert attacked.ask("train", trial, model).code == "E_SITE_FAILED", "the site's log has E_PACKAGE_PART"


WRITER = """

NETWORKS = []

def focal(logits, targets, known):
    # Walk from the loss to the network's weights, and write the patient's labels into one of them.
    import gc
    if not NETWORKS:
        NETWORKS.extend(each for each in gc.get_objects() if type(each).__name__ == "SeverityNetwork")
    for network in NETWORKS:
        network.head.weight.data[:, 0] = SCALE * (2 * targets[0] - 1)
    return 0.0 * logits.sum(dim=1)
"""


@pytest.mark.parametrize(("scale", "code"), [("0.02", ""), ("500.0", "E_REPLY_UPDATE")])
def test_hostile_loss_gets_past_the_gateway_exactly_as_far_as_any_update(tmp_path: Path, scale: str, code: str) -> None:
    """It may write a patient's labels into the weights: within the bounds the gateway cannot tell, beyond it refuses.

    So the bounds on an update hold for a package's loss as for an app, and nothing more does.
    """
    package = packed_parts(tmp_path, f"writing-parts-{scale[0]}", PARTS_CODE + WRITER.replace("SCALE", scale))
    trial = study_of_parts(package)
    model = build_network(trial.network, seed=trial.study.seed)
    with rig() as attacked:
        PackageApprovals(attacked.hospital.site).approve(package, {}, by="the hospital")
        attacked.talk_into(trial)
        answer = attacked.ask("train", trial, model)
        assert answer.code == code
        if not code:
            written = answer.network(trial).head.weight[:, 0].detach()
            assert torch.allclose(written.abs(), torch.full_like(written, float(scale)), rtol=0.2), "the attack works"
