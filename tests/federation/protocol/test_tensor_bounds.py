"""Which bound a tensor gets: by its place in the network, and of a package's network never by its name."""

import re
from pathlib import Path

import pytest

from federation.protocol.flat_weights import WEIGHTS
from federation.protocol.study_config import StudyNetwork
from federation.protocol.tensor_bounds import is_measured, parts_of, reaches_of
from models import own_code
from models.network import SeverityNetwork, build_network
from models.network_settings import ARCHITECTURES
from models.own_packages import installed
from tests.helpers.own_package import CODE, write_package

UNBOUNDED = 1e20
ATTENTIVE = """

from models.pooling import PlaceAttention


class Attentive(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.pool = PlaceAttention(self.features, is_gated=False)

    def forward(self, scan: Tensor) -> Tensor:
        return self.pool(super().forward(scan))[:, :, None, None, None]


def attentive() -> nn.Module:
    return Attentive()
"""


def made(architecture: str, pooling: str = "", norm: str = "batch") -> SeverityNetwork:
    content = {"architecture": architecture, "pooling": pooling, "norm": norm, "widen_factor": 0.125}
    return build_network(StudyNetwork.model_validate(content), seed=1)


def own(folder: Path, name: str, code: str = CODE, network: str = "tiny") -> SeverityNetwork:
    package = installed(name, [write_package(folder / name, name, code, networks=(network,))])
    own_code.allow(package)
    content = {"architecture": f"{name}:{network}", "code": package.sha256, "pooling": "attention"}
    return build_network(StudyNetwork.model_validate(content), seed=1)


def share_of(network: SeverityNetwork, wanted: str) -> float:
    """Return the share by which a weight may move in a round."""
    start = 0
    for name, weight in network.state_dict().items():
        if name == wanted:
            break
        start += weight.numel() if name in dict(network.named_parameters()) else 0
    parts = parts_of(network, learning_rate=0.05, epochs=2)[WEIGHTS]
    return next(part.share for part in parts if part.start == start)


def held(network: SeverityNetwork) -> list[tuple[int, float]]:
    reaches = reaches_of(network, learning_rate=0.05, epochs=2, rounds=20)[WEIGHTS]
    return [(reach.start, reach.farthest) for reach in reaches if reach.farthest < UNBOUNDED]


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_most_filters_of_every_network_are_held(architecture: str, norm: str) -> None:
    network = made(architecture, norm=norm)
    late = [
        weight
        for name, weight in network.named_parameters()
        if weight.ndim > 2 and any(stage in name for stage in ("2.", "3.", "4.")) and "layer1" not in name
    ]
    assert len(held(network)) > 0.5 * sum(len(weight) for weight in late)
    assert share_of(network, next(n for n, w in network.named_parameters() if w.ndim > 2)) == 2.5


def unheld(network: SeverityNetwork) -> set[str]:
    """Return the names of the weights of which some part may be any distance from the seed's."""
    free = [
        reach.start
        for reach in reaches_of(network, learning_rate=0.05, epochs=2, rounds=20)[WEIGHTS]
        if reach.farthest >= UNBOUNDED
    ]
    names, end = set(), 0
    for name, weight in network.named_parameters():
        if any(end <= start < end + weight.numel() for start in free):
            names.add(name)
        end += weight.numel()
    return names


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_first_filters_and_the_ends_may_be_any_distance_from_the_seeds(architecture: str, norm: str) -> None:
    """Every shift, filter of later stages and hidden unit of attention is held: none can become a threshold."""
    network = made(architecture, "gated", norm)
    first = next(name for name, weight in network.named_parameters() if weight.ndim > 2)
    for name in unheld(network) - {first}:
        is_early = re.search(r"\.(layer|denseblock|transition)1\.", name) and network.get_parameter(name).ndim > 1
        assert is_early or re.search(r"^(head|tabular)\.|\.importance$", name), name


@pytest.mark.parametrize(
    ("architecture", "pool"),
    [
        ("resnet18", "backbone.avgpool"),
        ("resnet18_slices", "backbone"),
        ("densenet121", "backbone.class_layers.pool"),
        ("seresnet50", "backbone.adaptive_avg_pool"),
        ("efficientnet_b0_slices", "backbone"),
        ("convnext", "backbone.pool"),
    ],
)
def test_weights_of_attention_may_move_further_without_gates(architecture: str, pool: str) -> None:
    assert share_of(made(architecture, "attention"), f"{pool}.importance") == 0.9
    assert share_of(made(architecture, "gated"), f"{pool}.importance") == 0.4


@pytest.mark.parametrize("widen_factor", [0.25, 1])
def test_weights_on_age_and_sex_may_move_as_far_in_a_wide_network(widen_factor: float) -> None:
    """An honest hospital alone moved them by up to 0.15; in a wide network they are drawn much shorter."""
    content = {"architecture": "convnext", "widen_factor": widen_factor}
    network = build_network(StudyNetwork.model_validate(content), seed=1)
    start = sum(weight.numel() for name, weight in network.named_parameters() if not name.startswith("head."))
    parts = {part.start: part for part in parts_of(network, learning_rate=0.05, epochs=2)[WEIGHTS]}
    part = parts[start + network.features]
    assert max(part.share * part.rms, part.floor) >= 1.5 * 0.15
    assert part.longest == 0.6


def head_of_scan(outputs: str, widen_factor: float) -> tuple[float, float]:
    """Return the length at the seed and the largest length of an output's weights on the scan."""
    content = {"architecture": "resnet10", "outputs": outputs, "widen_factor": widen_factor}
    network = build_network(StudyNetwork.model_validate(content), seed=1)
    start = sum(weight.numel() for name, weight in network.named_parameters() if not name.startswith("head."))
    parts = parts_of(network, learning_rate=0.02, epochs=2)[WEIGHTS]
    return next((part.rms, part.longest) for part in parts if part.start == start)


@pytest.mark.parametrize("widen_factor", [0.0625, 0.5])
def test_head_that_is_applied_at_each_place_stays_short(widen_factor: float) -> None:
    """Whatever the first model's head is, which a study takes from its start."""
    for outputs in ("labels", "auxiliary"):
        assert head_of_scan(outputs, widen_factor)[1] == 0.6
    at_seed, longest = head_of_scan("hidden_blocks", widen_factor)
    assert 3 * at_seed < longest < min(0.6, 5 * at_seed)


def test_layers_of_a_package_get_no_bound_of_our_attention(tmp_path: Path) -> None:
    network = own(tmp_path, "attentive-nets", CODE + ATTENTIVE, "attentive")
    assert share_of(network, "backbone.maps.pool.importance") == 0.12
    assert share_of(network, "backbone.pool.importance") == 0.9


@pytest.mark.parametrize("ending", ["_running_mean", "_running_var", "_num_batches_tracked", "_bias"])
def test_weight_whose_name_only_ends_like_a_statistic_has_the_bound_of_other_weights(
    ending: str, tmp_path: Path
) -> None:
    """A wide bound of running statistics would let a server move such a weight anywhere."""
    shares = []
    for number, name in enumerate(("plain", f"my{ending}")):
        code = CODE.replace("return self.blocks(scan)", f"return self.blocks(scan) * self.{name}.view(1, -1, 1, 1, 1)")
        code = code.replace("widths = (", f"self.{name} = nn.Parameter(torch.ones(self.features))\n        widths = (")
        code = code.replace("from torch import", "import torch\nfrom torch import")
        network = own(tmp_path, f"ends{ending.replace('_', '')}{number}-nets", code)
        shares.append(share_of(network, f"backbone.maps.{name}"))
    assert shares[0] == shares[1]


@pytest.mark.parametrize("name", ["gate", "content", "importance", "layer1", "bn"])
def test_names_in_a_package_do_not_change_its_bounds(tmp_path: Path, name: str) -> None:
    usual = own(tmp_path, f"usual-{name}-nets")
    renamed = own(tmp_path, f"named-{name}-nets", CODE.replace("self.blocks", f"self.{name}"))
    assert held(renamed) == held(usual)
    first = usual.get_parameter("backbone.maps.blocks.0.0.weight").numel()
    filters = [start for start, _ in held(usual) if start >= first]
    of_package = 8 + 8 + 16 + 16 + 16 + 32 + 32 + 32  # channels of three norms, filters after the first layer
    assert len(filters) == of_package + 16 + 16, "and the hidden units of our attention, each with its bias"


def test_only_measured_forms_count_as_measured() -> None:
    for known in (
        {},
        {"architecture": "resnet10", "widen_factor": 1},
        {"architecture": "densenet121"},
        {"architecture": "densenet121", "pooling": "gated"},
    ):
        assert is_measured(StudyNetwork.model_validate(known))
    for unknown in (
        {"architecture": "densenet121", "widen_factor": 0.5},
        {"architecture": "seresnet50", "norm": "group"},
        {"architecture": "convnext", "pooling": "gated"},
        {"architecture": "resnet18", "pooling": "gated", "widen_factor": 0.5},
        {"architecture": "resnet18_slices", "pooling": "attention"},
        {"architecture": "resnet-nets:tiny", "code": "0" * 64},
    ):
        assert not is_measured(StudyNetwork.model_validate(unknown))
