"""The gateway's part in a masked round: agree on keys, mask the reply, and help to unmask the sum.

It runs after the reply was checked and before it is sent. The app has no part in it. The last steps run beside the next
task, because they wait for the other hospitals; after a restart they go on.

SITE_DIR/keys/secagg                 the gateway's key
SITE_DIR/gateway/secagg/             see `federation.secure_aggregation.store`
SITE_DIR/gateway/secagg/<run>.begun  the header of a run's round whose last steps are not done
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from federation.approval.peers import PeerApprovals, identity_file
from federation.gateway import reasons
from federation.gateway.first_model import model_digest
from federation.gateway.flower_objects import ArrayHead, Arrays, Content, object_id
from federation.gateway.reply_checks import Values, pieces
from federation.gateway.schema import ArraySpec, Schema
from federation.gateway.spool import Spool
from federation.gateway.task_intake import Task
from federation.gateway.upstream import Declined, Unreachable, Upstream
from federation.protocol.batch_norm import MEAN, VARIANCE
from federation.protocol.error_codes import code_in
from federation.protocol.masked_replies import FIGURES, MASKED, WORDS
from federation.protocol.metric_allowlist import EXAMPLES
from federation.secure_aggregation import reasons as secagg_reasons
from federation.secure_aggregation.canonical import canonical
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.masking import Words, masked
from federation.secure_aggregation.messages import NOTHING, TRAIN, Advertised, Confirmations, Header, Sealed, Uploaded
from federation.secure_aggregation.reply_vector import Reply, Settings, vector
from federation.secure_aggregation.roster import Roster
from federation.secure_aggregation.site_round import MASKED as MASKED_STEP
from federation.secure_aggregation.site_round import Limits, SiteRound
from federation.secure_aggregation.store import Store, witness_folder
from federation.secure_aggregation.update_checks import clip_factor
from federation.superlink.masked_address import ROUND_HEADER
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.system.atomic_files import write_durably

PAUSE_SECONDS = 0.5
_BEGUN = ".begun"
BEGIN_SECONDS = 6 * 3600.0  # as long as the slowest hospital may train
SILENT_SECONDS = 60.0  # how long the server may not know the round before the reply is masked: then it has ended
LAST_SECONDS = 7 * 24 * 3600.0  # a killed server is resumed within this time
REGISTER_SECONDS = 300.0

Note = Callable[[Header, str], None]
log = logging.getLogger("fedthorax.gateway")


class MaskedRounds:
    """Masked rounds of one site. `note`: writes a line to the ledger."""

    def __init__(self, site: Site, upstream: Upstream, spool: Spool, note: Note) -> None:
        self._site, self._upstream, self._spool, self._note = site, upstream, spool, note
        self._peers = PeerApprovals(site)
        self._folder = spool.folder / "secagg"
        self._last_steps: dict[str, asyncio.Task[None]] = {}  # by run

    @cached_property
    def _identity(self) -> Identity:
        return Identity.kept(identity_file(self._site))

    @cached_property
    def _store(self) -> Store:
        """The store, which sites without masked rounds do not need."""
        return Store(self._folder, witness_folder(self._site.folder))

    # --- the reply ----------------------------------------------------------------------------------------

    async def mask(self, task: Task, content: Content, values: Values) -> Content:
        """Return the reply with only the masked words, whose chunks are in the spool.

        Raises Refusal: those of `SiteRound`, `vector` and `clip_factor`, E_SECAGG_SETTINGS, E_SECAGG_ROSTER,
        E_RUN_OVER.
        """
        assert task.run is not None
        roster = await asyncio.to_thread(self._approved)
        until = min(task.expires, time.time() + BEGIN_SECONDS)
        header, settings = await self._begin(task, roster)
        metrics = dict(values["metrics"])
        figures = {name: float(str(metrics[name])) for name in FIGURES if name in metrics}
        patients = int(str(metrics[EXAMPLES]))
        came_in = Arrays(task.content.arrays, self._spool.came_in.get)
        went_out = Arrays(content.arrays, self._spool.going_out.get)
        reply = await asyncio.to_thread(_reply, figures, patients, settings, task.run.schema, came_in, went_out)
        list(vector_head(reply, settings))  # refuse a reply that cannot be summed before keys are agreed on
        round_ = self._round(header, roster)
        if (before := self._last_steps.pop(header.run, None)) is not None:
            before.cancel()  # another round begins: nothing is answered about the one before
        own = await asyncio.to_thread(round_.advertise)
        advertised = Advertised.parse(await self._ask("advertise", own.content, header, until, SILENT_SECONDS))
        sealed = await asyncio.to_thread(round_.share, advertised)
        received = Sealed.parse(await self._ask("share", sealed.content, header, until, SILENT_SECONDS))
        await asyncio.to_thread(write_durably, self._begun(header.run), header.content)
        masks = await asyncio.to_thread(round_.mask, received)
        head = await asyncio.to_thread(self._write, masked(vector(reply, settings), masks), settings.words)
        return Content(arrays={MASKED: {WORDS: head}})

    def _approved(self) -> Roster:
        roster = self._peers.current()
        if roster is None:
            raise Refusal(secagg_reasons.SECAGG_ROSTER)
        return roster

    def _round(self, header: Header, roster: Roster) -> SiteRound:
        table = self._site.settings.gateway
        limits = Limits(min_peers=table.min_peers, max_changes=table.max_sum_changes)
        return SiteRound(self._store, self._identity, roster, header, limits, lambda text: self._note(header, text))

    async def _begin(self, task: Task, roster: Roster) -> tuple[Header, Settings]:
        """Return what the server says about the round, if it is what this task and this study make it."""
        assert task.run is not None and task.round is not None
        about = canonical({"run": task.run.name, "round": task.round, "app": task.app})
        answer = json.loads(await self._ask("begin", about, None, time.time() + SILENT_SECONDS))
        try:
            header = Header.parse(canonical(answer["header"]))
            settings = Settings.model_validate(answer["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise Refusal(reasons.SECAGG_SETTINGS, private=str(error)[:300]) from error
        if header.roster != roster.digest:
            raise Refusal(secagg_reasons.SECAGG_ROSTER)
        schema = task.run.schema
        own = Header(
            study=task.run.digest,
            run=task.run.name,
            round=task.round,
            attempt=header.attempt,
            roster=roster.digest,
            kind=TRAIN,
            model=model_digest(task.content.arrays),
            asked=NOTHING,
            settings=settings.digest,
            app=task.app,
        )
        weights, means = _weights(schema), _buffer(schema, MEAN)
        channels = schema.buffers[means].length if means else 0
        expected = (schema.arrays[weights].length, channels, FIGURES, len(roster.members))
        if header != own or (settings.weights, settings.channels, settings.figures, settings.sites) != expected:
            different = [name for name in Header.model_fields if getattr(header, name) != getattr(own, name)]
            raise Refusal(reasons.SECAGG_SETTINGS, private=", ".join(different) or "settings")
        return header, settings

    def _write(self, words: Iterator[Words], count: int) -> ArrayHead:
        """Write masked words into the spool, as Flower cuts a numpy file into chunks."""
        spec = ArraySpec("uint32", count)
        lengths = spec.chunk_bytes()
        left, waiting, ids = next(lengths), bytearray(spec.header), []
        for piece in words:
            waiting += piece.tobytes()
            while len(waiting) >= left > 0:
                ids.append(self._put(bytes(waiting[:left])))
                del waiting[:left]
                left = next(lengths, 0)
        assert not waiting and not left
        return ArrayHead(spec.dtype, (count,), tuple(ids))

    def _put(self, part: bytes) -> str:
        chunk = f"ArrayChunk  {len(part)}".encode() + b"\x00" + part
        id = object_id(chunk)
        self._spool.going_out.put(id, chunk)
        return id

    # --- the last steps -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Begin to do the last steps of the rounds whose replies were sent, beside the next task."""
        for file in self._folder.glob(f"*{_BEGUN}"):
            under_way = self._last_steps.get(file.stem)
            if under_way is not None and not under_way.done():
                continue
            try:
                header = Header.parse(file.read_bytes())
            except (Refusal, OSError):
                log.warning("the file of a masked round is damaged")
                continue
            self._last_steps[header.run] = asyncio.create_task(self._finish(header))

    def _begun(self, run: str) -> Path:
        return self._folder / f"{run}{_BEGUN}"

    async def _finish(self, header: Header) -> None:
        try:
            round_ = self._round(header, await asyncio.to_thread(self._approved))
            if round_.step >= MASKED_STEP:
                await self._reveal(round_, header)
        except Refusal as refusal:
            log.warning("the masked round %d ended: %s %s", header.round, refusal.code, refusal.says)
            await asyncio.to_thread(self._note, header, f"masked round ended: {refusal.code}")
        except Exception:
            log.exception("the last steps of a masked round failed")
            return
        self._begun(header.run).unlink(missing_ok=True)

    async def _reveal(self, round_: SiteRound, header: Header) -> None:
        until = time.time() + LAST_SECONDS
        uploaded = Uploaded.parse(await self._ask("uploaded", b"", header, until))
        signed = await asyncio.to_thread(round_.confirm, uploaded)
        confirmations = Confirmations.parse(await self._ask("confirm", signed.content, header, until))
        revealed = await asyncio.to_thread(round_.reveal, confirmations)
        await self._ask("reveal", revealed.content, header, until)
        log.info("masked round %d: shares revealed for %d hospitals", header.round, len(uploaded.hospitals))

    async def _ask(
        self, step: str, content: bytes, header: Header | None, until: float, silence: float = LAST_SECONDS
    ) -> bytes:
        """Send a message, and repeat it until the server answers.

        `silence`: how long the server may be unreachable. Raises Refusal: E_RUN_OVER, or the server's.
        """
        about = {ROUND_HEADER: header.digest} if header else {}
        heard = time.time()
        while time.time() < min(until, heard + silence):
            try:
                if (answer := await self._upstream.tell(step, content, about)) is not None:
                    return answer
                heard = time.time()
            except Unreachable as error:
                log.info("%s: %s", step, error)
            except Declined as error:
                code = code_in(error.detail)
                reason = next((r for r in vars(secagg_reasons).values() if getattr(r, "code", "") == code), None)
                raise Refusal(reason or reasons.RUN_OVER, present="?", needed="?", private=str(error)) from error
            await asyncio.sleep(PAUSE_SECONDS)
        raise Refusal(reasons.RUN_OVER, private="the masked round took too long")


async def present_key(site: Site, upstream: Upstream, *, every_seconds: float = REGISTER_SECONDS) -> None:
    """Present the gateway's key to the server, again and again: the server may be new."""
    key = base64.b64encode(Identity.kept(identity_file(site)).public).decode()
    while True:
        try:
            await upstream.tell("peers", canonical({"key": key}), {})
        except (Unreachable, Declined) as error:
            log.info("the key for masked rounds was not presented: %s", error)
        await asyncio.sleep(every_seconds)


def vector_head(reply: Reply, settings: Settings) -> Iterator[Words]:
    """Yield the beginning of a reply's vector: all but the weights. Raises Refusal as `vector` does."""
    yield next(vector(reply, settings))


def _reply(
    figures: dict[str, float], patients: int, settings: Settings, schema: Schema, came_in: Arrays, went_out: Arrays
) -> Reply:
    """Return the reply to sum. Raises Refusal: E_SECAGG_SPARSE, E_SECAGG_RANGE, E_SECAGG_WEIGHT."""
    weights = _weights(schema)

    def changes() -> Iterator[NDArray]:
        spec = schema.arrays[weights]
        new = pieces(went_out.heads["arrays"][weights], spec, went_out.read)
        old = pieces(came_in.heads["arrays"][weights], spec, came_in.read)
        for after, before in zip(new, old, strict=True):
            yield after.astype(np.float64) - before

    def buffer(kind: str) -> NDArray:
        if not (name := _buffer(schema, kind)):
            return np.zeros(0)
        return np.concatenate(list(pieces(went_out.heads["buffers"][name], schema.buffers[name], went_out.read)))

    scale = clip_factor(
        changes(),
        longest=settings.longest,
        weights=settings.weights,
        least=settings.least(patients),
        fixed=schema.fixed(weights),
    )
    return Reply(patients, figures, buffer(MEAN), buffer(VARIANCE), changes(), scale)


def _weights(schema: Schema) -> str:
    """Return the name of the one array that holds all weights; `flat_weights` has the name, and needs torch."""
    (name,) = schema.arrays
    return name


def _buffer(schema: Schema, kind: str) -> str:
    """Return the name of the array of one kind of batch-norm buffer; "" if the network has none."""
    return next((name for name in schema.buffers if name.endswith(kind)), "")
