"""A strategy of a package gets updates, and what it returns is held as those of the release are."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from federation.protocol.study_config import Study
from federation.strategy.aggregation import Aggregation
from federation.strategy.flower_strategies import (
    OPTIONS,
    ServerOptimiser,
    build_strategy,
    is_robust,
    least_replies,
    server_optimiser,
    strategy_state,
)
from federation.strategy.own_strategy import OwnStrategy
from models import own_code
from models.own_packages import BUILT_IN, Kind, Named, installed
from models.refusal import Refusal
from tests.federation.strategy.test_aggregation import SITES, filed, model, updates
from tests.helpers.own_package import PARTS_CODE, write_package

_NUMBERS = itertools.count()


def strategy(folder: Path, code: str = PARTS_CODE, name: str = "half_way", **options: float) -> OwnStrategy:
    package_name = f"strategies-{next(_NUMBERS)}"
    parts: dict[Kind, tuple[str, ...]] = {"strategy": (name,)}
    written = write_package(folder / package_name, package_name, networks=(), parts=parts, parts_code=code)
    package = installed(package_name, [written])
    own_code.allow(package)
    built = build_strategy(f"{package_name}:{name}", options, code=package.sha256)
    assert isinstance(built, OwnStrategy)
    return built


def test_model_moves_by_the_update_that_the_package_returns(tmp_path: Path) -> None:
    origin, patients = model(0), [10, 35, 20, 7, 50, 12, 90]
    sent = updates(origin, 1)
    replies = filed(tmp_path / "replies", sent, origin)
    made = Aggregation(strategy(tmp_path, rate=0.25), 1, replies, patients, origin).run()
    assert made is not None and len(sent) == SITES
    for name, array in origin.items():
        mean = np.average([each[name] - array for each in sent], axis=0, weights=patients)
        np.testing.assert_allclose(made[name], array + 0.25 * mean, rtol=1e-4, atol=1e-6)
        assert (made[name].dtype, made[name].shape) == (array.dtype, array.shape)


def test_update_is_never_longer_than_the_longest_of_the_sites(tmp_path: Path) -> None:
    sent = np.array([[3.0, 4.0], [0.0, 1.0]], dtype=np.float32)
    code = "def far(updates, patients):\n    updates *= 1000\n    return updates[0]\n"
    np.testing.assert_allclose(strategy(tmp_path, code, "far").combined(sent, [1, 1]), [3.0, 4.0], rtol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "return updates",
        "return updates[0][:-1]",
        "return list(updates[0])",
        "return updates[0].astype(complex)",
        "return updates[0].astype(object)",
        "return updates[0] * np.nan",
        "raise ValueError('a path')",
        "return None",
    ],
)
def test_unusable_strategy_is_refused_before_the_run_waits_for_sites(tmp_path: Path, body: str) -> None:
    code = f"import numpy as np\n\n\ndef bad(updates, patients):\n    {body}\n"
    with pytest.raises(Refusal, match="E_PACKAGE_PART"):
        strategy(tmp_path, code, "bad").rehearse()
    strategy(tmp_path).rehearse()
    with pytest.raises(Refusal, match="E_PACKAGE_PART"):
        strategy(tmp_path, unknown=1.0).rehearse()


def test_gateway_reads_the_study_without_the_code() -> None:
    """It bounds the model's drift as for a strategy that moves no further than the sites' updates."""
    inner = build_strategy("not-here:half_way", {"rate": 2.0}, code="0" * 64)
    assert server_optimiser("not-here:half_way", {"rate": 2.0}, code="0" * 64) == ServerOptimiser()
    assert is_robust(inner) and least_replies(inner) == 1 and strategy_state(inner) == {}
    assert isinstance(inner, OwnStrategy)
    with pytest.raises(Refusal, match="E_NETWORK_CLOSED"):
        inner.rehearse()


def test_no_package_brings_a_strategy_under_the_name_of_the_releases_own() -> None:
    assert {name.lower() for name in OPTIONS} == BUILT_IN["strategy"]


OWN = {"name": "my-parts:half_way", "code": "0" * 64}


def study(**tables: object) -> Study:
    settings = {"name": "trial", "rounds": 3, "sites": 3, "quorum": 3}
    return Study.model_validate({"study": settings, "strategy": OWN, **tables})


def test_masked_study_refuses_a_strategy_that_needs_single_replies() -> None:
    assert study().strategy.own == Named("strategy", "my-parts:half_way", "0" * 64)
    assert study(aggregation={"summed_answers": True}).sums_answers, "only its answers are sums"
    for aggregation in ({"secure": True}, {"secure": True, "groups": 3}):
        with pytest.raises(ValidationError, match=r"single updates|at least 9 sites"):
            study(aggregation=aggregation)


@pytest.mark.parametrize(
    "table",
    [
        {"name": "my-parts:half_way"},
        {"name": "FedAvg", "code": "0" * 64},
        {"name": "../parts:half_way", "code": "0" * 64},
        {"name": "my-parts:half_way\n", "code": "0" * 64},
        {"name": "my-parts:half_way", "code": "0"},
    ],
    ids=str,
)
def test_study_names_strategy_and_code_exactly(table: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        study(strategy=table)


def test_study_names_one_version_of_a_package() -> None:
    training = {"loss": "my-parts:focal", "loss_code": "1" * 64}
    with pytest.raises(ValidationError, match="two codes"):
        study(training=training)
    same = study(training={**training, "loss_code": "0" * 64})
    assert [part.kind for part in same.own_parts] == ["loss", "strategy"]
