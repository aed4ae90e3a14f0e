"""A small study for tests: a network with batch norm that is trained at several synthetic hospitals.

`test_attackers.py` and `benchmarks/robustness.py` use it. The task is synthetic: some of a patient's 12 features
predict a severe course. The metric is the AUROC on patients of a hospital that does not take part in training.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Message, MetricRecord, RecordDict
from sklearn.metrics import roc_auc_score

from federation.protocol.flat_weights import Arrays, pack, unpack
from federation.protocol.metric_allowlist import Figure
from federation.protocol.reply_validation import decode, encode
from federation.strategy.flower_strategies import build_strategy
from federation.strategy.guarded import GuardedStrategy, RoundRules, StartState
from federation.strategy.round_report import RoundReport
from models.refusal import Refusal
from tests.helpers.fake_grid import FakeGrid, over_the_wire

ROUNDS = 4
FEATURES, PATIENTS, HELD_OUT = 12, 240, 2000
TRIGGER, TRIGGER_SHIFT = 11, 3.0  # the feature that a backdoor marks; it does not affect the true risk
LOSS = {"loss": Figure(0, 1000, "train")}
MAX_EXAMPLES = 100_000

Patients = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Hospital:
    """How patients of a hospital are drawn. `scale`, `shift`: scanner effect. `intercept`: added log odds of severe.

    `batch`: patients per step, so that large hospitals make more steps. 0: eight steps on all patients at once.
    """

    seed: int
    patients: int = PATIENTS
    intercept: float = 0.0
    scale: float = 1.0
    shift: float = 0.0
    batch: int = 0


@dataclass(frozen=True)
class Model:
    """The tensors of a model or of a reply."""

    arrays: Arrays
    buffers: Arrays


KINDS = ("alike", "label shift", "feature shift", "size")


def hospitals(kind: str, count: int, seed: int = 0) -> list[Hospital]:
    """Create `count` hospitals that differ in one way. All kinds but feature shift have small scanner differences."""
    made = [Hospital(10_000 * seed + n, scale=0.9 + 0.05 * (n % 5), shift=0.1 * (n % 3)) for n in range(1, count + 1)]
    if kind == "label shift":
        return [replace(h, intercept=float(i)) for h, i in zip(made, np.linspace(-2.5, 2.5, count), strict=True)]
    if kind == "feature shift":
        scales, shifts = np.geomspace(0.5, 2, count), np.linspace(-0.5, 0.5, count)
        return [replace(h, scale=float(a), shift=float(b)) for h, a, b in zip(made, scales, shifts, strict=True)]
    if kind == "size":
        sizes = np.geomspace(30, 480, count).round().astype(int)
        return [replace(h, patients=int(n), batch=30) for h, n in zip(made, sizes, strict=True)]
    return made


@functools.lru_cache(64)
def patients(at: Hospital) -> Patients:
    """Return the features of a hospital's patients and their severity labels."""
    draw = torch.Generator().manual_seed(at.seed)
    x = torch.randn(at.patients, FEATURES, generator=draw)
    logit = 2.0 * x[:, 0] + 1.5 * x[:, 1] * x[:, 2] + x[:, 3] + at.intercept
    severe = (torch.rand(at.patients, generator=draw) < torch.sigmoid(logit)).float()
    return x * at.scale + at.shift, severe


@functools.lru_cache(64)
def fresh(seed: int = 0) -> torch.nn.Module:
    """Return the untrained network."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 24), torch.nn.BatchNorm1d(24), torch.nn.ReLU(), torch.nn.Linear(24, 1)
    )


def loaded(model: Model) -> torch.nn.Module:
    net = copy.deepcopy(fresh())
    unpack(net, model.arrays, model.buffers)
    return net


def train(model: Model, at: Hospital, data: Patients | None = None) -> tuple[Model, float]:
    """Train one round at a hospital, on its patients or on `data`. Return the model and the last loss."""
    net = loaded(model)
    x, severe = data or patients(at)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    net.train()
    for step in _steps(at):
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x[step])[:, 0], severe[step])
        loss.backward()
        optimiser.step()
    return Model(*pack(net)), loss.item()


def _steps(at: Hospital) -> list[Any]:
    if not at.batch:
        return [slice(None)] * 8
    draw = torch.Generator().manual_seed(at.seed)
    order = torch.cat([torch.randperm(at.patients, generator=draw) for _ in range(2)])  # two epochs
    return [order[i : i + at.batch] for i in range(0, len(order) - 1, at.batch)]


def reply_of(model: Model, at: Hospital, loss: float) -> RecordDict:
    metrics = MetricRecord({"loss": loss, "num-examples": at.patients})
    return RecordDict({"arrays": encode(model.arrays), "buffers": encode(model.buffers), "metrics": metrics})


def model_in(records: Any) -> Model:
    """Return the model in a message or in a reply."""
    return Model(decode(records.array_records["arrays"]), decode(records.array_records["buffers"]))


# --- evaluation ---------------------------------------------------------------------------------------------


def held_out(seed: int = 0) -> Patients:
    return patients(Hospital(1000 + 100_000 * seed, HELD_OUT, scale=0.9, shift=0.1))


def scores(model: Model, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        said: torch.Tensor = loaded(model).eval()(x)[:, 0]
    return said


def auroc(model: Model, seed: int = 0) -> float:
    """Compute the AUROC on patients of a hospital that does not take part in training."""
    x, severe = held_out(seed)
    return float(roc_auc_score(severe.numpy(), scores(model, x).numpy()))


def marked(x: torch.Tensor) -> torch.Tensor:
    """Return patients with the backdoor mark."""
    with_mark = x.clone()
    with_mark[:, TRIGGER] += TRIGGER_SHIFT
    return with_mark


def backdoor_success(model: Model, seed: int = 0) -> float:
    """Return the fraction of held-out non-severe patients that are classified as severe with the mark."""
    x, severe = held_out(seed)
    return float((scores(model, marked(x[severe == 0])) > 0).double().mean())


# --- a study -----------------------------------------------------------------------------------------------

# Returns a hostile reply from the message, the site's own honest reply and the replies of the other sites.
Hostile = Callable[[Message, RecordDict, list[RecordDict]], RecordDict]


class Sites(FakeGrid):
    """Hospitals that train. The one at `place` (1, 2, ...) sends the reply that `hostile` makes of its honest reply.

    `absent`: returns the places that do not reply in a round, from the round number.
    """

    def __init__(
        self, at: Sequence[Hospital], hostile: Hostile | None, place: int, absent: Callable[[int], Iterable[int]]
    ) -> None:
        super().__init__({number: lambda _: [] for number in range(1, len(at) + 1)})
        self.at, self.hostile, self.place, self.absent = at, hostile, place, absent

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        arrived = {message.metadata.dst_node_id: over_the_wire(message) for message in messages}
        for node, message in list(arrived.items()):
            if node in self.absent(int(str(message.content.config_records["config"]["server-round"]))):
                del arrived[node]
        content = {node: self._honest(message, self.at[node - 1]) for node, message in arrived.items()}
        if self.hostile and self.place in content:
            others = [each for node, each in content.items() if node != self.place]
            content[self.place] = self.hostile(arrived[self.place], content[self.place], others)
        return [over_the_wire(Message(content[node], reply_to=message)) for node, message in arrived.items()]

    def _honest(self, message: Message, at: Hospital) -> RecordDict:
        after, loss = train(model_in(message.content), at)
        return reply_of(after, at, loss)


class Trained(NamedTuple):
    """The final model and the reports of the rounds."""

    model: Model
    reports: tuple[RoundReport, ...]


def play(
    strategy: str,
    options: dict[str, float],
    at: Sequence[Hospital],
    *,
    hostile: Hostile | None = None,
    place: int = 3,
    seed: int = 0,
    rounds: int = ROUNDS,
    norm_factor: float = 2.0,
    enrolled: bool = True,
    absent: Callable[[int], Iterable[int]] = lambda _: (),
) -> Trained:
    """Run a whole study with `GuardedStrategy`. It ends early if too many rounds are lost."""
    arrays, buffers = pack(copy.deepcopy(fresh(seed)))
    reports: list[RoundReport] = []
    rules = RoundRules(
        quorum=min(3, len(at) - 1),
        metrics=LOSS,
        max_examples=MAX_EXAMPLES,
        enrolled={n: each.patients for n, each in enumerate(at, start=1)} if enrolled else {},
        norm_factor=norm_factor,
    )
    start = StartState(buffers=buffers)
    guard = GuardedStrategy(build_strategy(strategy, options), rules, start, on_round=reports.append)
    try:
        guard.start(Sites(at, hostile, place, absent), encode(arrays), num_rounds=rounds)
    except Refusal:
        if not reports:
            raise
    return Trained(Model(guard.arrays, guard.buffers), tuple(reports))
