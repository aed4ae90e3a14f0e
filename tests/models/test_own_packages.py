"""A package of networks runs only where a process allows it, from exactly the text that was hashed."""

import json
import sys
from pathlib import Path

import pytest
import torch

from models import own_code
from models.network import build_network
from models.network_settings import TABULAR, NetworkSettings
from models.own_packages import BUILT_IN, MAX_BYTES, MAX_FILES, Kind, Named, Package, installed, read_package
from models.refusal import Refusal
from models.release import load_release, save_release
from models.saliency import saliency
from tests.helpers.descriptions import description
from tests.helpers.own_package import CODE, PARTS, write_package


def settings(package: Package, network: str = "tiny", **others: str) -> NetworkSettings:
    content = {"architecture": f"{package.name}:{network}", "code": package.sha256, **others}
    return NetworkSettings.model_validate(content)


def code_of(folder: Path, name: str) -> str:
    with pytest.raises(Refusal) as refused:
        installed(name, [folder])
    return refused.value.code


def test_package_is_read_without_being_imported(tmp_path: Path) -> None:
    write_package(tmp_path, "read-only-nets", "raise SystemExit('this file was imported')\n")
    package = installed("read-only-nets", [tmp_path])
    assert set(package.files) == {"read_only_nets/__init__.py", "read_only_nets/nets.py"}
    assert package.networks["tiny"] == "read_only_nets.nets:tiny"
    assert read_package(package.content) == package
    assert "read_only_nets" not in sys.modules


def test_hash_depends_on_each_file_and_not_on_where_they_are(tmp_path: Path) -> None:
    first, same = (installed("my-networks", [write_package(tmp_path / name)]) for name in ("first", "same"))
    assert first.sha256 == same.sha256
    (tmp_path / "same" / "my_networks" / "__init__.py").write_text("# another line\n")
    assert installed("my-networks", [tmp_path / "same"]).sha256 != first.sha256


def test_process_that_did_not_allow_it_runs_no_code(tmp_path: Path) -> None:
    package = installed("closed-nets", [write_package(tmp_path, "closed-nets")])
    with pytest.raises(Refusal, match="E_NETWORK_CLOSED"):
        build_network(settings(package), seed=1)
    assert "closed_nets" not in sys.modules


def test_allowed_network_computes_and_has_our_head(tmp_path: Path) -> None:
    package = installed("open-nets", [write_package(tmp_path, "open-nets")])
    own_code.allow(package)
    for pooling in ("", "attention", "gated"):
        network = build_network(settings(package, pooling=pooling), seed=1).eval()
        assert network(torch.zeros(2, 2, 16, 24, 20), torch.zeros(2, TABULAR)).shape == (2, 2)
        assert network.features == 32
    again = build_network(settings(package, pooling="gated"), seed=1).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
    other = build_network(settings(package), seed=2).state_dict()
    assert not torch.equal(again["backbone.maps.blocks.0.0.weight"], other["backbone.maps.blocks.0.0.weight"])


def test_network_with_other_tensors_than_the_approved_ones_is_not_built(tmp_path: Path) -> None:
    """Code that looks around could be another network in training than where its plan was worked out."""
    package = installed("two-faced-nets", [write_package(tmp_path, "two-faced-nets")])
    own_code.allow(package)
    _, plan = own_code.build("two-faced-nets:tiny", package.sha256)
    first, *others = plan.tensors
    claimed = plan.model_copy(update={"tensors": (first.model_copy(update={"name": "blocks.0.0.scale"}), *others)})
    for plans in ({"tiny": claimed}, {}):
        own_code.allow(package, plans)
        with pytest.raises(Refusal, match="E_NETWORK_PLAN"):
            build_network(settings(package), seed=1)
    own_code.allow(package, {"tiny": plan})
    assert build_network(settings(package), seed=1).features == 32


def test_file_that_changes_after_it_was_hashed_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the changed file is where Python searches first, and if it is imported late."""
    write_package(tmp_path, "changed-nets", "from changed_nets.late import made as tiny\n", networks=("tiny",))
    late = tmp_path / "changed_nets" / "late.py"
    late.write_text(CODE + "\n\nmade = tiny\n")
    package = installed("changed-nets", [tmp_path])
    late.write_text("raise SystemExit('the changed file was imported')\n")
    (tmp_path / "changed_nets" / "more.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own_code.allow(package)
    assert build_network(settings(package), seed=1).features == 32
    with pytest.raises(ModuleNotFoundError):
        __import__("changed_nets.more")


def test_installed_package_with_other_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(write_package(tmp_path, "other-nets")))
    with pytest.raises(Refusal, match="E_NETWORK_UNLIKE"):
        own_code.allow_installed("other-nets:tiny", "0" * 64)
    own_code.allow_installed("other-nets:tiny", installed("other-nets").sha256)


@pytest.mark.parametrize("root", ["torch", "json", "models", "federation", "sitecustomize", "Torch"])
def test_package_with_the_name_of_a_known_module_is_refused(tmp_path: Path, root: str) -> None:
    assert code_of(write_package(tmp_path, "my-networks", root=root), "my-networks") == "E_NETWORK_PACKAGE"


def test_package_in_the_module_of_another_distribution_is_refused(tmp_path: Path) -> None:
    assert code_of(write_package(tmp_path, "my-networks", root="hypothesis"), "my-networks") == "E_NETWORK_PACKAGE"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("my_networks/fast.so", b"\x7fELF"),
        ("my_networks/table.json", b"{}"),
        ("my_networks/latin.py", b"# \xe9\n"),
        ("my_networks/two-words.py", b""),
        ("my_networks/large.py", b"#" * (MAX_BYTES + 1)),
        ("my_networks/NETS.py", b""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_file_that_nobody_can_review_is_refused(tmp_path: Path, path: str, content: bytes) -> None:
    (write_package(tmp_path) / path).write_bytes(content)
    assert code_of(tmp_path, "my-networks") == "E_NETWORK_PACKAGE"


def test_links_and_too_many_files_are_refused(tmp_path: Path) -> None:
    (write_package(tmp_path / "linked") / "my_networks" / "far.py").symlink_to("/etc/hostname")
    assert code_of(tmp_path / "linked", "my-networks") == "E_NETWORK_PACKAGE"
    many = write_package(tmp_path / "many") / "my_networks"
    for number in range(MAX_FILES):
        (many / f"part{number}.py").write_text("")
    assert code_of(tmp_path / "many", "my-networks") == "E_NETWORK_PACKAGE"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../my-networks"},
        {"name": "My-Networks"},
        {"networks": {}},
        {"networks": {"tiny": "os:system"}},
        {"networks": {"tiny": "my_networks.nets:tiny.__class__"}},
        {"networks": {"../tiny": "my_networks.nets:tiny"}},
        {"files": {}},
        {"files": {"../my_networks/nets.py": ""}},
        {"files": {"/my_networks/nets.py": ""}},
        {"files": {"my_networks/../torch/nets.py": ""}},
        {"files": {"my_networks/nets.py": "", "torch.py": ""}},
        {"files": {"my_networks/nets.pyc": ""}},
        {"format": 2},
        {"more": 1},
    ],
    ids=str,
)
def test_document_with_tricks_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    package = installed("my-networks", [write_package(tmp_path)])
    content = json.dumps({**package.model_dump(), **change}, separators=(",", ":")).encode()
    with pytest.raises(Refusal, match="E_NETWORK_PACKAGE"):
        read_package(content)
    with pytest.raises(Refusal, match="E_NETWORK_PACKAGE"):
        read_package(package.content + b" ")


@pytest.mark.parametrize(
    "wrong",
    [
        {"architecture": "my-networks:tiny"},
        {"architecture": "../nets:tiny", "code": "0" * 64},
        {"architecture": "my-networks:../tiny", "code": "0" * 64},
        {"architecture": "my_networks:tiny", "code": "0" * 64},
        {"architecture": "my-networks:tiny\n", "code": "0" * 64},
        {"architecture": "my-networks:tiny", "code": "../" + "0" * 61},
        {"architecture": "my-networks:tiny", "code": "0" * 64, "widen_factor": 0.5},
        {"architecture": "resnet18", "code": "0" * 64},
    ],
    ids=str,
)
def test_settings_name_package_and_code_exactly(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        NetworkSettings.model_validate(wrong)


def test_network_called_slices_is_no_network_of_slices() -> None:
    named = NetworkSettings(architecture="my-networks:my_slices", code="0" * 64)
    assert not named.is_slicewise and not named.has_attention


def test_release_opens_only_where_the_package_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has allowed it, so another code stands for a process that has not."""
    package = installed("release-nets", [write_package(tmp_path / "here", "release-nets")])
    own_code.allow(package)
    network = build_network(settings(package), seed=1).eval()
    save_release(tmp_path / "model", network, description(network=settings(package)))
    assert f"release-nets:tiny, code `{package.sha256}`" in (tmp_path / "model" / "card.md").read_text()
    scan, known = torch.randn(2, 16, 24, 20), torch.zeros(TABULAR)
    loaded = load_release(tmp_path / "model").network
    with torch.inference_mode():
        assert torch.equal(loaded(scan[None], known[None]), network(scan[None], known[None]))
    assert saliency(loaded, scan, known, 1).shape == scan.shape[1:]
    unknown = settings(package).model_copy(update={"code": "1" * 64})
    save_release(tmp_path / "other", network, description(network=unknown))
    with pytest.raises(Refusal, match="E_NETWORK_CLOSED"):
        load_release(tmp_path / "other")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    with pytest.raises(Refusal, match="E_NETWORK_UNLIKE"):
        load_release(tmp_path / "other", runs_package=True)


def test_package_of_networks_has_the_document_that_it_had_before_there_were_other_parts(tmp_path: Path) -> None:
    """Hospitals approved such documents by their hash."""
    package = installed("my-networks", [write_package(tmp_path, code="", networks=("tiny",))])
    assert json.loads(package.content) == {
        "format": 1,
        "name": "my-networks",
        "networks": {"tiny": "my_networks.nets:tiny"},
        "files": {"my_networks/__init__.py": "", "my_networks/nets.py": ""},
    }


def test_package_without_a_network_is_one(tmp_path: Path) -> None:
    package = installed("my-parts", [write_package(tmp_path, "my-parts", networks=(), parts=PARTS)])
    assert read_package(package.content) == package
    assert [*package.losses, *package.transforms, *package.strategies] == ["focal", "dimmed", "half_way"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("loss", "cross_entropy"), ("loss", "masked_bce"), ("strategy", "fedavg"), ("strategy", "centered_clip")],
)
def test_part_with_the_name_of_the_releases_own_is_refused(tmp_path: Path, kind: Kind, name: str) -> None:
    folder = write_package(tmp_path, "my-parts", networks=(), parts={kind: (name,)})
    assert name.replace("_", "") in BUILT_IN[kind]
    assert code_of(folder, "my-parts") == "E_NETWORK_PACKAGE"


def test_part_runs_only_where_its_package_is_allowed_and_has_it(tmp_path: Path) -> None:
    package = installed("closed-parts", [write_package(tmp_path, "closed-parts", networks=(), parts=PARTS)])
    loss = Named("loss", "closed-parts:focal", package.sha256)
    with pytest.raises(Refusal, match="E_NETWORK_CLOSED"):
        own_code.function(loss)
    assert "closed_parts" not in sys.modules
    own_code.allow(package)
    assert own_code.function(loss).__name__ == "focal"
    for kind, name in (("loss", "closed-parts:other"), ("loss", "other:focal"), ("network", "closed-parts:focal")):
        with pytest.raises(Refusal, match="E_NETWORK_PACKAGE"):
            own_code.function(Named(kind, name, package.sha256))
