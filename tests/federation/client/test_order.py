"""The order of patients at a site: equal for equal received weights, and different for any other weights."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from federation.client.site_tasks import order_seed
from pipeline.cohort.dataset import Examples
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site

WEIGHTS = {"weights": np.linspace(-1, 1, 50, dtype=np.float32)}


def examples(*pseudonyms: str) -> Examples:
    """Create examples that have only pseudonyms."""
    found = [SimpleNamespace(pseudonym=pseudonym) for pseudonym in pseudonyms]
    return cast(Examples, SimpleNamespace(examples=found))


def test_order_depends_on_the_received_weights() -> None:
    """Otherwise the difference of two updates, from two heads, reveals which patients the heads treat differently."""
    here = examples("a", "b")
    other = {"weights": WEIGHTS["weights"].copy()}
    assert order_seed(1, here, WEIGHTS) == order_seed(1, here, other)
    other["weights"][7] = np.nextafter(other["weights"][7], np.float32(2))
    assert order_seed(1, here, WEIGHTS) != order_seed(1, here, other)


def test_order_depends_on_the_pseudonyms_and_the_seed() -> None:
    seeds = {order_seed(seed, examples(*names), WEIGHTS) for seed in (1, 2) for names in (("a", "b"), ("a", "c"))}
    assert len(seeds) == 4
    assert order_seed(1, examples("b", "a"), WEIGHTS) == order_seed(1, examples("a", "b"), WEIGHTS)


@pytest.mark.slow
def test_examples_of_a_cohort_have_pseudonyms(small_site: Site) -> None:
    """Copying files or changing their time must not change the order. Otherwise runs would not be reproducible."""
    with Cohort.read(small_site) as cohort:
        here = Examples(cohort.examples("train"))
        assert {example.pseudonym for example in here.examples} == {
            patient.pseudonym for patient in cohort.patients() if patient.split == "train"
        }
    assert "" not in {example.pseudonym for example in here.examples}
