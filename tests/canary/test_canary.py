"""The short canary proof: a clean run, a refused run, a crashed run and three leaks.

`make canary` runs the whole proof. Both use real processes in separate network namespaces; see docs/canary.md.
"""

import pytest

from tests.canary.cable import Cable
from tests.canary.proof import SHORT, Results, prove
from tests.canary.table import FOUND, REFUSED, STOPPED
from tests.canary.traffic import DECRYPTED

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    if why := Cable.why_not():
        pytest.skip(why)
    return prove(tmp_path_factory.mktemp("canary"), whole=False)


def test_proof_reports_no_problem(results: Results) -> None:
    assert results.problems == []


def test_no_planted_data_leaves_without_a_leaking_app(results: Results) -> None:
    assert [trial.name for trial in results.trials] == ["joining", "clean run", "refused run", "crashed run", "leaks"]
    for trial in results.trials[:-1]:
        assert trial.hits == []
        assert trial.out.unread == []
        assert trial.out.parts[DECRYPTED]
    assert results.planted > 60


def test_each_leak_is_refused_stopped_or_found(results: Results) -> None:
    assert [outcome.leak for outcome in results.walls] == list(SHORT)
    assert [outcome.verdict for outcome in results.walls] == [REFUSED, FOUND, STOPPED]
