"""A hostile and a curious server against pretraining on hidden blocks: what its head adds to a reply."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from federation.client.client_app import app as own_app
from federation.client.site_tasks import order_seed
from federation.protocol.flat_weights import pack
from federation.protocol.metric_allowlist import EXAMPLES, LOSS
from federation.protocol.study_config import Study
from federation.protocol.tensor_bounds import parts_of
from models.loss import MEASURE_REACH, block_regression, bounded_regression
from models.network import SeverityNetwork
from pipeline.cohort.dataset import Example
from pipeline.training.hidden_blocks import BLOCK_HU, BlockExamples, block_hu
from pipeline.training.pretraining import measures, standardised
from tests.attacks.imprint import imprint
from tests.attacks.rig import Rig, rig, seed_network
from tests.attacks.test_pretraining import LEAST, ROUNDS, SETTINGS, pretraining
from tests.attacks.test_unlabelled import FEW, add_unlabelled
from tests.federation.gateway.messages import record_of

Matrix = NDArray[np.float64]

pytestmark = pytest.mark.usefixtures("quiet_and_repeatable")


# --- at the real gateway ------------------------------------------------------------------------------------


@contextmanager
def attacked(*studies: Study, rounds: int = ROUNDS) -> Iterator[Rig]:
    allowed = {"max_pretraining_rounds_a_month = 0": f"max_pretraining_rounds_a_month = {rounds}"}
    with rig(patients=dict(FEW), settings=SETTINGS | allowed) as found:
        add_unlabelled(found.hospital, LEAST)
        for study in studies:
            found.talk_into(study)
        yield found


@pytest.mark.slow
def test_only_the_loss_leaves_beside_the_update_and_a_head_of_another_kind_neither_comes_nor_goes() -> None:
    blocks, auxiliary = pretraining("hidden_blocks"), pretraining()

    def other_head(task: Message, context: Context) -> Message:
        reply = own_app(task, context)
        reply.content["arrays"] = record_of(pack(seed_network(auxiliary))[0])
        return reply

    with attacked(blocks) as found:
        assert found.ask("train", blocks, seed_network(auxiliary)).code == "E_TASK_RECORDS"
        assert found.ask("train", auxiliary, seed_network(auxiliary)).code == "E_STUDY_REFUSED"
        assert found.ask("evaluate.test", blocks, seed_network(blocks)).code == "E_TASK_KIND"
        answer = found.must("train", blocks, seed_network(blocks))
        assert set(answer.metrics) == {LOSS, EXAMPLES}
        assert answer.metrics[EXAMPLES] == FEW["train"] + LEAST
        found.app = other_head
        assert found.ask("train", blocks, seed_network(blocks), run="trial-other001").code == "E_REPLY_SHAPE"


@pytest.mark.slow
def test_rounds_of_both_kinds_of_pretraining_count_in_one_budget() -> None:
    blocks, auxiliary = pretraining("hidden_blocks"), pretraining()
    with attacked(blocks, auxiliary) as found:
        for number in range(ROUNDS):
            study = (blocks, auxiliary)[number % 2]
            found.must("train", study, seed_network(study), run=f"trial-{number:08d}")
        for study in (blocks, auxiliary):
            assert found.ask("train", study, seed_network(study), run="trial-more0001").code == "E_SITE_LIMIT"


@pytest.mark.slow
def test_weights_that_respond_to_one_patient_and_a_long_head_are_refused() -> None:
    """The trap of `imprint`, at first, and after an honest round; then a head that grows from round to round."""
    blocks = pretraining("hidden_blocks")
    trap = imprint(blocks, np.full(seed_network(blocks).features, 2.0), head=0.1).network
    with attacked(blocks, rounds=10) as found:
        assert found.ask("train", blocks, trap).code == "E_MODEL_FIRST"
        model = found.must("train", blocks, seed_network(blocks)).network(blocks)
        assert found.ask("train", blocks, trap, round_number=2).code == "E_MODEL_DRIFT"
        lengthen(model, 3)
        model = found.must("train", blocks, model, round_number=2).network(blocks)
        lengthen(model, 2)
        assert found.ask("train", blocks, model, round_number=3).code == "E_MODEL_DRIFT"


@torch.no_grad()
def lengthen(network: SeverityNetwork, times: float) -> None:
    network.head.weight[:, : network.features] *= times


# --- without a gateway: what the update of the head can tell ------------------------------------------------

SHAPE, GRID, MAPS = (34, 34, 34), (4, 4, 4), (2, 2, 2)
WINDOW = (-1000.0, 200.0)
SCANS, OWN = 160, 112  # of all; of them the server's own, with which it learns to read an update
DRAWS = 3  # of hidden blocks for each scan
LAST = 320  # weights at the end of the network, of the head of either kind


def scans() -> Tensor:
    """Return lungs of patients (SCANS, 2, *SHAPE) with dense parts of their own, smooth as in phantoms."""
    rng = np.random.default_rng(1)
    made = np.empty((SCANS, 2, *SHAPE), np.float32)
    z, y, x = (np.linspace(-1, 1, size) for size in SHAPE)
    for number in range(SCANS):
        illness = np.clip(rng.normal(size=(3, 3, 3)), 0, None) * rng.uniform(0, 400)
        hu = -830 + ndimage.zoom(illness, [size / 3 for size in SHAPE], order=1) + rng.normal(scale=20, size=SHAPE)
        side = rng.uniform(0.4, 0.55)
        inside = (np.abs(x) - 0.5) ** 2 / side**2 + (y / 0.9)[:, None] ** 2 + (z / 0.95)[:, None, None] ** 2 < 1
        hu = np.where(inside, hu, 40.0).clip(*WINDOW)
        made[number] = (hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0]) * 2 - 1, inside
    return torch.from_numpy(made)


def in_hu(scan: Tensor) -> Tensor:
    return (scan[0] + 1) / 2 * (WINDOW[1] - WINDOW[0]) + WINDOW[0]


def pictures(all_scans: Tensor) -> Matrix:
    """Return the density of each block of each scan (SCANS, blocks with lung), in units of its usual spread."""
    found = torch.stack([standardised(block_hu(in_hu(scan), scan[1], GRID), BLOCK_HU) for scan in all_scans])
    every = found.flatten(1)
    return every[:, ~every.isnan().any(dim=0)].double().numpy()


class InMemory(BlockExamples):
    """Hides blocks of a scan in memory."""

    def __init__(self, seed: int) -> None:
        super().__init__([], WINDOW, maps=MAPS, seed=seed)

    def hide(self, scan: Tensor) -> tuple[Tensor, Tensor]:
        return self._task(scan, in_hu(scan))


def settled(outputs: str, all_scans: Tensor) -> SeverityNetwork:
    """Return the first weights of a pretraining, with the batch-norm moments of these scans, in evaluation mode.

    A gradient of one scan then does not depend on others: the easiest case for the server.
    """
    network = seed_network(pretraining(outputs))
    with torch.no_grad():
        for batch in all_scans.split(8):
            network(batch, torch.zeros(len(batch), 4))
    return network.eval()


def gradients(outputs: str, all_scans: Tensor) -> NDArray[np.float32]:
    """Return the gradient of the network by each scan alone (draws, SCANS, weights); those of the head are the last."""
    network, hiding, drawn = settled(outputs, all_scans), InMemory(seed=5), []
    learnt = [weight for weight in network.parameters() if weight.requires_grad]
    for _ in range(DRAWS if outputs == "hidden_blocks" else 1):
        if outputs == "hidden_blocks":
            tasks, loss = [hiding.hide(scan) for scan in all_scans], block_regression
        else:
            tasks, loss = [(scan, measures(in_hu(scan), scan[1])) for scan in all_scans], bounded_regression
        found = []
        for scan, target in tasks:
            of_scan = loss(network(scan[None], torch.zeros(1, 4)), target[None], target[None])
            made = torch.autograd.grad(of_scan, learnt)
            found.append(torch.cat([part.flatten() for part in made]).numpy())
        drawn.append(np.stack(found))
    return np.stack(drawn)


def products(gradient: NDArray[np.float32]) -> Matrix:
    """Return the products of all gradients, standardised by weight as the server's own scans are."""
    own = gradient[:, :OWN].reshape(-1, gradient.shape[-1])
    spread = own.std(axis=0)
    scaled = (gradient.reshape(-1, gradient.shape[-1]) - own.mean(axis=0)) / (spread + 1e-3 * spread.mean())
    return (scaled @ scaled.T).astype(np.float64)


def explained(of_scans: Matrix, picture: Matrix, patients: int) -> float:
    """Return the share of a scan's picture that an update of this many patients tells a server with scans of its own.

    The server fits a ridge regression from the mean gradient of such patients to the picture of one of them, compared
    with the mean of its hospital, and reads updates of patients that it does not know. It is given the best
    regularisation; 0 is what the hospital's mean tells. `of_scans`: products of the gradients of single scans.
    """
    rng, draws = np.random.default_rng(2), len(of_scans) // SCANS

    def updates(pool: NDArray[np.int64], count: int) -> tuple[Matrix, Matrix]:
        who = np.stack([rng.choice(pool, patients, replace=False) for _ in range(count)])
        means = np.zeros((count, len(of_scans)))
        means[np.arange(count)[:, None], SCANS * rng.integers(draws, size=who.shape) + who] = 1 / patients
        return means, picture[who[:, 0]] - picture[pool].mean(axis=0)

    known, truth = updates(np.arange(OWN), 800)
    unknown, wanted = updates(np.arange(OWN, SCANS), 300)
    kernel, across, best = known @ of_scans @ known.T, unknown @ of_scans @ known.T, 0.0
    for penalty in np.trace(kernel) / len(kernel) * 10.0 ** np.arange(-5, 3):
        read = across @ np.linalg.solve(kernel + penalty * np.eye(len(kernel)), truth)
        best = max(best, 1 - float(((read - wanted) ** 2).sum() / (wanted**2).sum()))
    return best


@pytest.mark.slow
def test_update_tells_no_more_of_one_scan_than_that_of_auxiliary_pretraining() -> None:
    """Neither that of the head nor that of the whole network.

    The control is the gradient of one scan, which nobody sends: the server must be able to read it.
    """
    all_scans = scans()
    picture = pictures(all_scans)
    told = {outputs: gradients(outputs, all_scans) for outputs in ("auxiliary", "hidden_blocks")}
    for part in (slice(-LAST, None), slice(None)):
        of_scans = {outputs: products(gradient[..., part]) for outputs, gradient in told.items()}
        alone, among = (
            {outputs: explained(found, picture, patients) for outputs, found in of_scans.items()}
            for patients in (1, LEAST)
        )
        assert alone["hidden_blocks"] > 0.25
        assert among["hidden_blocks"] < 0.1
        assert among["hidden_blocks"] < among["auxiliary"] + 0.03


def loudest(features: Matrix, length: float) -> float:
    """Return the largest share that one scan can get of the gradient of an output, of 300 heads of a length.

    `features`: (scans, places, features). The server shifts the estimates so that the highest one is in the middle of
    the range. The others are near its end, where an estimate teaches nothing.
    """
    rng, best = np.random.default_rng(3), 0.0
    every = features.reshape(-1, features.shape[-1])
    for number in range(300):
        head = every[rng.integers(len(every))] - every.mean(axis=0) if number % 2 else rng.normal(size=every.shape[1])
        estimates = features @ (head * length / np.sqrt((head**2).mean()))
        slope = np.cosh((estimates - estimates.max()) / MEASURE_REACH) ** -2
        of_scan = slope.sum(axis=1)
        best = max(best, float(of_scan.max() / of_scan.sum()))
    return best


@pytest.mark.slow
def test_head_cannot_become_so_long_that_it_listens_to_one_scan_alone() -> None:
    """The control is a head of ten times the length that a server reaches: it listens to few scans."""
    all_scans = scans()[:LEAST]
    network = settled("hidden_blocks", all_scans)
    with torch.no_grad():
        features = network.of_scans(all_scans).double().numpy()
    parts = parts_of(network, learning_rate=0.02, epochs=2)["weights"]
    longest = min(part.longest for part in parts if part.start == of_head(network))
    assert loudest(features, longest) < 1.5 / LEAST
    assert loudest(features, 10 * longest) > 3 / LEAST


def of_head(network: SeverityNetwork) -> int:
    """Return where the head's weights begin in the packed weights."""
    return sum(weight.numel() for name, weight in network.named_parameters() if not name.startswith("head."))


def test_server_does_not_know_which_blocks_are_hidden() -> None:
    """The draw follows from the pseudonyms, which only the site's key makes: guesses are right by chance."""
    lungs = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)])
    names, weights = [f"{number:016x}" for number in range(20)], {"weights": np.zeros(10, np.float32)}

    def hidden(pseudonyms: list[str], seed: int) -> Matrix:
        examples = InMemory(0)
        examples.examples = [example_of(name) for name in pseudonyms]
        draws = InMemory(order_seed(seed, examples, weights))
        return np.stack([~draws.hide(lungs)[1].isnan().numpy() for _ in pseudonyms]).astype(float)

    truth = hidden(names, 1)
    np.testing.assert_array_equal(truth, hidden(names, 1))
    guesses = [
        hidden([f"{number + guess:016x}" for number in range(20)], seed) for guess in (1, 2, 3) for seed in (1, 2)
    ]
    right = [float((guess == truth).mean()) for guess in guesses]
    assert all(abs(share - 0.5) < 5 * 0.5 / np.sqrt(truth.size) for share in right)


def example_of(pseudonym: str) -> Example:
    return Example(Path("scan.npy"), None, None, None, None, pseudonym=pseudonym)
