"""Check that a model comes from the study's seed or from models that this site trained in the same run.

A hostile server could otherwise send weights whose update reveals single patients. The first model must be the one
that the study's seed determines. Every later model must be near a model that this site trained in the same run:
`tensor_bounds.parts_of` limits how far each tensor may move per round in between, and how long it may become. In
addition, `tensor_bounds.reaches_of` limits how far each filter and channel may ever be from the seed's.

SITE_DIR/gateway/models/<run>/state.json   the run's chains: for each, the last model that this site trained
SITE_DIR/gateway/models/<run>/<chunk id>   the chunks of those models

A run has several chains if its study also trains local models or leaves sites out.
"""

import json
import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.gateway import reasons
from federation.gateway.first_model import MODEL_RECORDS, Heads, heads_as_json, heads_of, model_digest
from federation.gateway.flower_objects import Arrays
from federation.gateway.reply_checks import pieces
from federation.gateway.schema import Schema
from federation.protocol.batch_norm import is_counter
from federation.protocol.metric_allowlist import Kind
from models.refusal import Refusal
from pipeline.system.atomic_files import replacing, sync_folder, write_durably

KEPT_RUNS = 16
_ANY = np.inf
_TASKS_A_ROUND = 2  # a lost round is asked for again

ReadFirst = Callable[[], Arrays]  # returns the seed's model, computed on demand


@dataclass
class _Chain:
    """The last model of one training, as this site trained it. `round`: the latest round in which it was trained."""

    round: int
    digest: str
    heads: Heads


@dataclass
class _State:
    """What is known of a run. `first`: digest of the seed's model. `trained`: first round of each trained model."""

    first: str
    tasks: int = 0
    trained: dict[str, int] = field(default_factory=dict)
    chains: list[_Chain] = field(default_factory=list)


class Lineage:
    """The models of one run at this site.

    `read_first`: returns the seed's model. `max_missed`: how many rounds a site may miss.
    """

    def __init__(self, folder: Path, run: str, schema: Schema, *, read_first: ReadFirst, max_missed: int) -> None:
        self._folder = folder / run
        self._schema, self._read_first = schema, read_first
        self._gap = max_missed + 1 if not schema.draws_sites else schema.rounds
        # The model of each single site, and the model without each left-out site, have chains of their own.
        self._max_chains = max(1, schema.questions.get("evaluate.test", 1))

    def check(self, kind: Kind, round_number: int, model: Arrays) -> None:
        """Check that the model of a task can be a result of this run. Reads only the chunks that it needs.

        Raises Refusal: E_MODEL_FIRST, E_MODEL_DRIFT, E_MODEL_UNTRAINED, E_ROUND_NUMBER.
        """
        state, digest = self._read(), model_digest(model.heads)
        if state.first != self._schema.first_model:
            raise Refusal(reasons.MODEL_FIRST, private="the run had a different study before")
        if kind == "train":
            self._check_training(state, round_number, digest, model)
        else:
            self._check_question(state, digest, model)
        if digest != self._schema.first_model and digest not in state.trained:
            self._check_reach(model)

    def _check_training(self, state: _State, round_number: int, digest: str, model: Arrays) -> None:
        if not 1 <= round_number <= self._schema.rounds:
            raise Refusal(reasons.ROUND_NUMBER, rounds=self._schema.rounds)
        if state.tasks >= _TASKS_A_ROUND * self._max_chains * self._schema.rounds:
            raise Refusal(reasons.ROUND_NUMBER, rounds=self._schema.rounds, private="too many tasks in this run")
        if digest == self._schema.first_model and round_number <= self._gap:
            return
        if 0 <= round_number - state.trained.get(digest, round_number + 1) <= self._gap:
            return
        for chain in state.chains:
            if 0 < round_number - chain.round <= self._gap and self._fits(chain, model, round_number - chain.round):
                return
        may_begin = len(state.chains) < self._max_chains and 1 < round_number <= self._gap
        if may_begin and self._is_near(self._read_first(), model, round_number - 1):
            return
        raise Refusal(reasons.MODEL_DRIFT if state.chains else reasons.MODEL_FIRST)

    def _check_question(self, state: _State, digest: str, model: Arrays) -> None:
        """Accept a question only about a model that this site trained, or that few rounds can make of one."""
        if not state.chains:
            raise Refusal(reasons.MODEL_UNTRAINED)
        if digest in state.trained:
            return
        for chain in state.chains:
            rounds = min(self._gap, self._schema.rounds + 1 - chain.round)
            if self._fits(chain, model, max(1, rounds)):
                return
        # The approved study also evaluates models of other sites, and models trained without this site.
        judges_others = self._schema.questions.get("evaluate.test", 1) > 1
        if judges_others and self._is_near(self._read_first(), model, self._schema.rounds):
            return
        raise Refusal(reasons.MODEL_DRIFT)

    def accept(self, round_number: int, model: Arrays, folder: Path, *, is_worse: bool = False) -> None:
        """Remember a model that was trained here; `folder` holds its chunks by their ids. Raises OSError.

        `is_worse`: this site finds the model much worse than the ones before it. The study may go back to one of these,
        so the next model is still compared with the last one that was not worse.
        """
        state, digest = self._read(), model_digest(model.heads)
        heads = {record: dict(model.heads[record]) for record in MODEL_RECORDS if model.heads.get(record)}
        chain = _Chain(round_number, digest, heads)
        if not (is_worse and state.chains):
            place = self._place(state, round_number, digest, model)
            state.chains[place : place + 1] = [chain]
        state.tasks += 1
        state.trained.setdefault(digest, round_number)
        # After a kill at any moment, the last state that was written has all of its chunks.
        wanted = self._keep_chunks(state, folder)
        self._write(state)
        self._drop_chunks(wanted)

    def _place(self, state: _State, round_number: int, digest: str, model: Arrays) -> int:
        """Return the index of the chain that the model continues; one past the last for a new chain."""
        for place, chain in enumerate(state.chains):
            if chain.digest == digest:
                return place
        for place, chain in enumerate(state.chains):
            gap = round_number - chain.round
            if digest != self._schema.first_model and gap > 0 and self._fits(chain, model, gap):
                return place
        return len(state.chains) if len(state.chains) < self._max_chains else 0

    # --- distance between models --------------------------------------------------------------------------

    def _fits(self, chain: _Chain, model: Arrays, rounds: int) -> bool:
        def read(chunk: str) -> bytes:
            return (self._folder / chunk).read_bytes()

        return self._is_near(Arrays(chain.heads, read), model, rounds)

    def _is_near(self, old: Arrays, new: Arrays, rounds: int) -> bool:
        """Tell whether no tensor moved further than `rounds` rounds allow."""
        for record, specs in self._schema.model.items():
            for name in specs:
                if is_counter(name):
                    if not self._counts_on(old, new, record, name):
                        return False
                    continue
                starts = np.array([part[0] for part in self._schema.parts[name]])
                moved, before, after = self._lengths(old, new, record, name, starts)
                far, long = self._allowed(record, name, before, rounds)
                if not ((moved <= far) & (after <= long)).all():  # NaN fails this comparison too
                    return False
        return True

    def _check_reach(self, model: Arrays) -> None:
        """Check that each filter and channel is near enough to the seed's. Raises Refusal E_MODEL_DRIFT.

        Bounds on whole tensors alone would let a server replace single filters or move a few channels far.
        """
        for name, reaches in self._schema.reaches.items():
            starts, farthest = np.array(reaches).T
            moved = self._lengths(self._read_first(), model, "arrays", name, starts)[0]
            step = self._schema.rounds * self._schema.server_step
            if not (moved <= self._schema.server_factor * farthest + step).all():
                raise Refusal(reasons.MODEL_DRIFT, private="a filter or channel is too far from the first model's")

    def _lengths(self, old: Arrays, new: Arrays, record: str, name: str, starts: NDArray) -> NDArray:
        """Return three root mean squares per piece of an array: its change, its old and its new values; shape (3, n).

        `starts`: where each piece begins.
        """
        spec = self._schema.model[record][name]
        starts = starts.astype(np.int64)
        sizes = np.diff([*starts, spec.length])
        squares = np.zeros((3, len(starts)))
        at = 0
        for before, after in _both(old, new, record, name, spec):
            wide = before.astype(np.float64), after.astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                for row, values in enumerate((wide[1] - wide[0], *wide)):
                    _add_by_tensor(squares[row], starts, at, values * values)
            at += len(before)
        return np.sqrt(squares / sizes)

    def _allowed(self, record: str, name: str, length: NDArray, rounds: int) -> tuple[NDArray, NDArray]:
        """Return how far each tensor of an array may move in `rounds` rounds, and how long it may become."""
        _, at_seed, share, floor, longest = np.array(self._schema.parts[name]).T
        far = np.maximum(share * np.maximum(length, at_seed), floor)
        if record == "arrays":
            is_fixed = (share == 0) & (floor == 0)
            step = np.where(is_fixed, 0, self._schema.server_step)
            far, longest = self._schema.server_factor * far + step, longest + self._schema.rounds * step
            longest = np.where(is_fixed, _ANY, longest)  # these may not move at all
        return rounds * far, longest

    def _counts_on(self, old: Arrays, new: Arrays, record: str, name: str) -> bool:
        spec = self._schema.model[record][name]
        return all(bool((after >= before).all()) for before, after in _both(old, new, record, name, spec))

    # --- files --------------------------------------------------------------------------------------------

    def _read(self) -> _State:
        try:
            content = json.loads((self._folder / "state.json").read_bytes())
        except FileNotFoundError:
            return _State(self._schema.first_model)
        chains = [_Chain(c["round"], c["digest"], heads_of(c["heads"])) for c in content.pop("chains")]
        return _State(**content, chains=chains)

    def _write(self, state: _State) -> None:
        content = {
            "first": state.first,
            "tasks": state.tasks,
            "trained": state.trained,
            "chains": [{"round": c.round, "digest": c.digest, "heads": heads_as_json(c.heads)} for c in state.chains],
        }
        write_durably(self._folder / "state.json", json.dumps(content).encode())

    def _keep_chunks(self, state: _State, folder: Path) -> set[str]:
        """Add the chunks of all chains to the run's folder, and return their names; delete the folders of old runs."""
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True, mode=0o700)
            _forget_old_runs(self._folder.parent)
        wanted = {
            chunk
            for chain in state.chains
            for group in chain.heads.values()
            for head in group.values()
            for chunk in head.chunks
        }
        for chunk in wanted:
            if not (self._folder / chunk).exists():
                with (
                    (folder / chunk).open("rb") as spooled,
                    replacing(self._folder / chunk, flush=True) as kept,
                ):
                    shutil.copyfileobj(spooled, kept)
        sync_folder(self._folder)
        return wanted

    def _drop_chunks(self, wanted: Container[str]) -> None:
        """Delete all other chunks from the run's folder."""
        for path in self._folder.iterdir():
            if path.name not in wanted and path.name != "state.json":
                path.unlink()


def _both(old: Arrays, new: Arrays, record: str, name: str, spec: Any) -> Iterator[tuple[NDArray, NDArray]]:
    return zip(
        pieces(old.heads[record][name], spec, old.read), pieces(new.heads[record][name], spec, new.read), strict=True
    )


def _add_by_tensor(sums: NDArray, starts: NDArray, at: int, values: NDArray) -> None:
    """Add `values`, which begin at index `at` of the array, to the sums of their tensors."""
    first = int(np.searchsorted(starts, at, side="right")) - 1
    last = int(np.searchsorted(starts, at + len(values), side="left"))
    cuts = np.maximum(starts[first:last] - at, 0)
    sums[first:last] += np.add.reduceat(values, cuts)


def _forget_old_runs(folder: Path) -> None:
    """Delete all but the `KEPT_RUNS` newest runs' models."""
    runs = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime_ns)
    for old in runs[KEPT_RUNS:]:
        with suppress(OSError):
            shutil.rmtree(old)
