"""Each network by name, behind the gateway: honest rounds and answers pass, a model beyond the bounds does not."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from federation.client.site_tasks import load_network, train_site
from federation.gateway.first_model import write_chunks
from federation.gateway.flower_objects import Arrays
from federation.gateway.lineage import Lineage
from federation.gateway.reply_checks import pieces
from federation.protocol.flat_weights import pack
from federation.protocol.metric_allowlist import Kind
from federation.protocol.study_config import Study
from models.network import SeverityNetwork, build_network
from models.refusal import Refusal
from pipeline.site.folder import Site
from tests.federation.gateway.messages import KINDS, arrays_of
from tests.federation.gateway.own_app import CONFIGS, STUDY, Asked, ask, let_out, make_site

NETWORKS = [
    {"architecture": "resnet18", "pooling": "attention"},
    {"architecture": "resnet18", "pooling": "gated", "norm": "group"},
    {"architecture": "resnet18_slices", "pooling": "attention"},
    {"architecture": "densenet121"},
    {"architecture": "densenet121", "pooling": "gated", "norm": "group"},
    {"architecture": "seresnet50"},
    {"architecture": "seresnet50", "pooling": "attention", "norm": "group"},
    {"architecture": "efficientnet_b0_slices"},
    {"architecture": "efficientnet_b0_slices", "pooling": "attention", "norm": "group"},
    {"architecture": "convnext"},
    {"architecture": "convnext", "pooling": "gated", "norm": "group"},
]
NAMES = [" ".join(network.values()) for network in NETWORKS]
ANSWERING = [network for network in NETWORKS if len(network) == 1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Shared by all tests: do not modify it."""
    return make_site(tmp_path_factory.mktemp("sites") / "north")


def study(network: dict[str, str], **privacy: float) -> Study:
    tables = {
        **STUDY.model_dump(exclude_none=True),
        "network": {**STUDY.network.model_dump(), "widen_factor": 0.25, **network},
    }
    return Study.model_validate(tables | ({"privacy": privacy} if privacy else {}))


class Run:
    """A run at one site, whose gateway remembers each model."""

    def __init__(self, folder: Path, trial: Study) -> None:
        self.folder, self.trial, self.model = folder, trial, build_network(trial.network, seed=trial.study.seed)
        self.chunks = folder / "chunks"
        self.chunks.mkdir()

    def lineage(self, asked: Asked) -> Lineage:
        arrays, buffers = pack(build_network(self.trial.network, seed=self.trial.study.seed))
        first = arrays_of({"arrays": arrays, "buffers": buffers})
        return Lineage(self.folder / "models", "run", asked.schema, read_first=lambda: first, max_missed=5)

    def train(self, site: Site, number: int) -> Asked:
        """Do a round: the gateway checks the model, lets the reply out, and remembers the model."""
        asked = ask(site, self.trial, "train", {}, model=self.model, round_number=number)
        came_in = Arrays(asked.task.arrays, asked.task_objects.__getitem__)
        self.lineage(asked).check("train", number, came_in)
        let_out(site, "train", asked, self.trial)
        arrays, buffers = pack(self.model)
        write_chunks({"arrays": arrays, "buffers": buffers}, self.chunks)
        self.lineage(asked).accept(number, came_in, self.chunks)
        self.model = model_of(asked, self.trial)
        return asked

    def code(self, asked: Asked, number: int, model: SeverityNetwork) -> str:
        """Return the code with which a model is refused as that of a round; "" if it is accepted."""
        arrays, buffers = pack(model)
        try:
            self.lineage(asked).check("train", number, arrays_of({"arrays": arrays, "buffers": buffers}))
        except Refusal as refusal:
            return refusal.code
        return ""


def model_of(asked: Asked, trial: Study) -> SeverityNetwork:
    """Return the model of a reply."""
    packed = {
        record: {
            name: np.concatenate(list(pieces(asked.reply.arrays[record][name], spec, asked.reply_objects.__getitem__)))
            for name, spec in specs.items()
        }
        for record, specs in asked.schema.gives("train").items()
    }
    return load_network(trial, packed["arrays"], packed["buffers"])


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=NAMES)
def test_two_honest_rounds_pass_and_a_replaced_filter_does_not(
    site: Site, tmp_path: Path, network: dict[str, str]
) -> None:
    run = Run(tmp_path, study(network))
    for number in (1, 2):
        asked = run.train(site, number)
    assert run.code(asked, 3, run.model) == ""
    assert held(run.model), "no filter has a bound"
    for place in held(run.model):
        assert run.code(asked, 3, without_first(run.model, place)) == "E_MODEL_DRIFT", place
    assert run.code(asked, 3, changed(run.model, "head.weight", lambda head: head.mul_(100))) == "E_MODEL_DRIFT"
    fixed = changed(run.model, "tabular.0.bias", lambda bias: bias.add_(1e-3))
    assert run.code(asked, 3, fixed) == "E_MODEL_DRIFT"


def held(network: SeverityNetwork) -> list[str]:
    """Return the names of a late convolution, of the first late scale or shift and, if there are any, of gates of
    channels.
    """
    names = [name for name, _ in network.named_parameters() if ".layer3." in name or ".denseblock3." in name]
    convolution = next(name for name in names if network.get_parameter(name).ndim > 2)
    channels = next(name for name in names if network.get_parameter(name).ndim == 1)
    return [convolution, channels, *[name for name in names if name.endswith(("fc.0.weight", "_se_reduce.weight"))][:1]]


def without_first(network: SeverityNetwork, name: str) -> SeverityNetwork:
    """Replace the first filter or scale of a tensor by zeros, or its first shift by one that few patients exceed."""
    to = -1.0 if name.endswith("bias") else 0.0
    return changed(network, name, lambda tensor: tensor[:1].fill_(to))


def changed(network: SeverityNetwork, name: str, change: Callable[[Tensor], object]) -> SeverityNetwork:
    other = copy.deepcopy(network)
    with torch.no_grad():
        change(other.get_parameter(name))
    return other


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("train", "query.handshake")])
@pytest.mark.parametrize("network", ANSWERING, ids=lambda network: network["architecture"])
def test_answer_about_a_network_passes(site: Site, network: dict[str, str], kind: Kind) -> None:
    trial = study(network)
    assert let_out(site, kind, ask(site, trial, kind, CONFIGS.get(kind, {})), trial)


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        "convnext",
        *(
            pytest.param(name, marks=pytest.mark.further)
            for name in ("densenet121", "seresnet50", "efficientnet_b0_slices")
        ),
    ],
)
def test_private_round_of_a_network_is_trained(site: Site, architecture: str) -> None:
    trial = study({"architecture": architecture, "norm": "group"}, noise_multiplier=1.0, sample_rate=0.1)
    arrays, buffers = pack(build_network(trial.network, seed=1))
    assert not buffers
    told = train_site(site, trial, arrays, buffers, round_number=1, charged=True)
    assert np.isfinite(told.arrays["weights"]).all() and not np.array_equal(told.arrays["weights"], arrays["weights"])


def test_slices_cannot_be_pooled_by_a_mean() -> None:
    with pytest.raises(ValidationError, match="attention"):
        study({"architecture": "resnet18_slices", "pooling": "mean"})


def test_usual_pooling_is_not_written_so_that_digests_stay() -> None:
    assert "pooling" not in STUDY.network.model_dump()
    assert study({"pooling": "gated"}).network.model_dump()["pooling"] == "gated"
