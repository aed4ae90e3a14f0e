"""The canary proof of a masked study, in one process: the wire shows nothing, the gateway's plaintext everything.

The whole proof with real processes is part of `make canary`; here a real gateway masks what a leaking app replies.
"""

import numpy as np
import pytest

from federation.gateway.masked_rounds import MaskedRounds
from federation.protocol.flat_weights import WEIGHTS
from federation.secure_aggregation.reply_vector import mean_of
from tests.canary.leaks import LEAKS
from tests.canary.recording import copies, recorded
from tests.canary.scanner import Hit
from tests.canary.test_leaks import exchange, loot, scanner, sent
from tests.federation.gateway.messages import trained
from tests.federation.gateway.test_masked_rounds import (  # noqa: F401 - two of them are fixtures
    CAME_IN,
    RNG,
    STEPS,
    Study,
    finish,
    short,
    site,
    study,
)

THROUGH = ("text in the lowest bits", "pixels in the weights")


@pytest.fixture
def recording(study: Study, monkeypatch: pytest.MonkeyPatch) -> Study:  # noqa: F811 - a fixture
    """A masked round at a site whose gateway keeps what it is about to mask."""
    study.approve()
    study.open()
    monkeypatch.setattr(MaskedRounds, "mask", recorded(MaskedRounds.mask, study.site.folder))
    return study


def plaintext(study: Study) -> bytes:  # noqa: F811
    """What the gateway has checked and was about to mask."""
    return b"".join(path.read_bytes() for path in copies(study.site.folder))


def wire(study: Study) -> bytes:  # noqa: F811
    """All that the server has received: the reply's objects, and the messages of the masked round."""
    return b"".join((*study.server.received.values(), *(body for _, body in study.server.told)))


def disguises(hits: list[Hit]) -> set[str]:
    return {hit.disguise for hit in hits}


def test_honest_update_shows_nothing_in_the_plaintext_and_on_the_wire(recording: Study) -> None:
    recording.work(short(trained(CAME_IN, RNG, STEPS)))
    assert scanner().scan(plaintext(recording)) == []
    assert scanner().scan(wire(recording)) == []


@pytest.mark.parametrize("name", THROUGH)
def test_leak_is_found_in_the_plaintext_as_in_an_unmasked_study_and_not_on_the_wire(
    recording: Study, name: str
) -> None:
    reply = recording.work(short(trained(CAME_IN, RNG, STEPS)), leak=lambda out: LEAKS[name](loot(), out, out))
    assert not reply.has_error()
    unmasked = exchange()[1]
    LEAKS[name](loot(), unmasked, unmasked)
    expected = disguises(scanner().scan(sent(unmasked)))
    assert expected
    assert expected <= disguises(scanner().scan(plaintext(recording)))
    assert scanner().scan(wire(recording)) == []


def test_leak_that_the_gateway_refuses_is_never_masked(recording: Study) -> None:
    name = "name as a metric"
    reply = recording.work(short(trained(CAME_IN, RNG, STEPS)), leak=lambda out: LEAKS[name](loot(), out, out))
    assert reply.error.reason == "E_REPLY_METRICS"
    assert copies(recording.site.folder) == []


def test_plaintext_that_is_scanned_is_what_the_sum_holds(recording: Study) -> None:
    """The copy is not another one than the masked reply."""
    out = short(trained(CAME_IN, RNG, STEPS))
    total = finish(recording, recording.work(out))
    assert out["arrays"][WEIGHTS].tobytes() in plaintext(recording)
    update = out["arrays"][WEIGHTS].astype(np.float64) - CAME_IN["arrays"][WEIGHTS]
    np.testing.assert_allclose(mean_of(total, recording.settings, 3).changes, 30 / 130 * update, atol=1e-5)
