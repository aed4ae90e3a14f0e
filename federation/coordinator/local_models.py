"""Local models: one for each site, trained at the same time for as many rounds as the federated model.

A site starts from the study's first weights and does the same local training as in a federated round. In the next
round it gets only its own result back, without any other site's weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict

from federation.coordinator.connected_sites import MAX_EXAMPLES, Records, Sites
from federation.coordinator.rounds import Model, Training
from federation.protocol.metric_allowlist import FIGURES
from federation.protocol.reply_validation import Expected, decode, encode
from federation.protocol.study_config import Study
from federation.strategy import checkpoint


def model_records(model: Model) -> Records:
    """Pack a model into the records of a message. A model without buffers has no record for them."""
    records: Records = {"arrays": encode(model.arrays)}
    if model.buffers:
        records["buffers"] = encode(model.buffers)
    return records


def model_of(reply: Message) -> Model:
    """Unpack the model of a valid reply."""
    records = reply.content.array_records
    return Model(decode(records["arrays"]), decode(records["buffers"]) if "buffers" in records else {})


@dataclass(frozen=True)
class Alone:
    """The local models of all sites, saved after each round under `folder`."""

    study: Study
    folder: Path
    run: str
    say: Callable[[str], None]

    def train(self, sites: Sites, rounds: int) -> dict[int, Model]:
        """Train for `rounds` rounds, or resume; return the local models of the sites that answered in every round."""
        states = {node: self._start(sites.name(node)) for node in sites.nodes()}
        for number in range(1, rounds + 1):
            due = {node: state for node, state in states.items() if state.round < number}
            if due:
                states = {**states, **self._round(sites, number, due)}
                states = {node: state for node, state in states.items() if state.round >= number}
                self.say(f"local models: round {number} of {rounds} · {len(states)} sites")
        return {node: Model(state.arrays, state.buffers) for node, state in states.items()}

    def _folder(self, site: str) -> Path:
        return self.folder / f"{site} alone"

    def _start(self, site: str) -> checkpoint.State:
        return Training(self.study, self._folder(site), self.run).state

    def _round(self, sites: Sites, number: int, states: Mapping[int, checkpoint.State]) -> dict[int, checkpoint.State]:
        """Return the states after one more round, for the sites that answered."""
        shapes = next(iter(states.values()))

        def content(node: int) -> RecordDict:
            records = model_records(Model(states[node].arrays, states[node].buffers))
            records["config"] = ConfigRecord({"server-round": number})
            return RecordDict(records)

        expected = Expected(shapes.arrays, shapes.buffers, FIGURES["train"], MAX_EXAMPLES)
        timeout_s = self.study.study.round_timeout_s
        sifted = sites.ask("train", content, expected, nodes=sorted(states), timeout_s=timeout_s)
        for node, code in sifted.refused.items():
            self.say(f"no local model of {sites.name(node)}: {code}")
        done = {}
        for node, reply in sifted.valid.items():
            model = model_of(reply)
            done[node] = replace(states[node], round=number, arrays=model.arrays, buffers=model.buffers)
            checkpoint.save(self._folder(sites.name(node)), done[node])
        return done
