"""One masked round at the coordinator: which hospitals to wait for, and for how long.

The hospitals' gateways ask for the next step, and wait for its answer here. All methods may be called from any thread.
"""

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable

from federation.secure_aggregation import reasons
from federation.secure_aggregation.answer_vector import AnswerSettings
from federation.secure_aggregation.canonical import canonical
from federation.secure_aggregation.masking import Words
from federation.secure_aggregation.messages import Advertisement, Confirmation, Header, Revealed, Sealed
from federation.secure_aggregation.reply_vector import Settings
from federation.secure_aggregation.roster import threshold_of
from federation.secure_aggregation.server_round import ServerRound
from models.refusal import Refusal

HOLD_SECONDS = 8.0  # how long a question waits for its answer; the gateway asks again
SHARES_SECONDS = 60.0  # how long to wait for the shares of all hospitals that have advertised
LAST_STEPS_SECONDS = 120.0  # how long to wait for signatures, and then for shares
SPARE_SECONDS = 5.0  # how long to wait for the remaining hospitals when enough have revealed their shares

MakeRound = Callable[[Header], ServerRound]


class MaskedRound:
    """`header`: of the attempt; its app is that of the first hospital that asks. `expected`: names of the hospitals.

    `seconds`: how long to wait for their training. `quorum`: least number of replies, besides the roster's threshold;
    with fewer, nothing is unmasked. `server`: an attempt that a killed server had begun. `only`: the hospitals that may
    take part, if not all of the roster.
    """

    def __init__(
        self,
        header: Header,
        settings: Settings | AnswerSettings | None,
        make: MakeRound,
        expected: Iterable[str],
        *,
        seconds: float,
        quorum: int = 0,
        server: ServerRound | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        self.header, self.settings, self.quorum, self._only = header, settings, quorum, only
        self._make, self._server = make, server
        self._waiting = set(expected)
        self._changed = threading.Condition()
        self._trained_until = time.monotonic() + seconds
        self._shared_until = float("inf")
        self._is_lost = False

    # --- what hospitals ask -------------------------------------------------------------------------------

    def answer(self, site: str, step: str, content: bytes, about: str) -> bytes | None:
        """Return the answer to a hospital's message, None if it must ask again. `about`: digest of its header.

        Raises Refusal: those of `ServerRound`, E_SECAGG_NOT_SAME.
        """
        if self._only is not None and site not in self._only:
            raise Refusal(reasons.SECAGG_NOT_SAME)
        with self._changed:
            if step == "begin":
                return self._begin(content)
            server = self._server
            if server is None or about != server.header.digest:
                raise Refusal(reasons.SECAGG_ROUND_OLD)
            return getattr(self, f"_{step}")(server, site, content)

    def _begin(self, content: bytes) -> bytes | None:
        asked = json.loads(content)
        if self.settings is None or (asked["run"], asked["round"]) != (self.header.run, self.header.round):
            return None
        if self._server is None:
            self.header = Header.parse(canonical({**self.header.model_dump(mode="json"), "app": asked["app"]}))
            self._server = self._make(self.header)
        return canonical({"header": json.loads(self.header.content), "settings": self.settings.model_dump(mode="json")})

    def _advertise(self, server: ServerRound, site: str, content: bytes) -> bytes | None:
        server.advertise(site, Advertisement.parse(content))
        self._wait(lambda: server.advertised is not None)
        return server.advertised.content if server.advertised else None

    def _share(self, server: ServerRound, site: str, content: bytes) -> bytes | None:
        server.share(site, Sealed.parse(content))
        self._wait(lambda: server.sharing is not None)
        return server.shares_for(site).content if server.sharing else None

    def _uploaded(self, server: ServerRound, site: str, content: bytes) -> bytes | None:
        self._wait(lambda: server.uploaded is not None)
        return server.uploaded.content if server.uploaded else None

    def _confirm(self, server: ServerRound, site: str, content: bytes) -> bytes | None:
        server.confirm(site, Confirmation.parse(content))
        self._wait(lambda: server.confirmations is not None)
        return server.confirmations.content if server.confirmations else None

    def _reveal(self, server: ServerRound, site: str, content: bytes) -> bytes | None:
        server.reveal(site, Revealed.parse(content))
        self._changed.notify_all()
        return b"{}"

    def _wait(self, is_there: Callable[[], bool]) -> None:
        """Wait until something is there, and freeze the lists that are complete meanwhile."""
        until = time.monotonic() + HOLD_SECONDS
        self._changed.notify_all()
        self._freeze()
        while not is_there() and not self._is_lost and (left := until - time.monotonic()) > 0:
            self._changed.wait(min(left, 1.0))
            self._freeze()
        if self._is_lost:
            raise Refusal(reasons.SECAGG_TOO_FEW, present=len(self._waiting), needed=self._needed)

    def _freeze(self) -> None:
        """Fix who takes part when all have advertised or time is over; then who masks with whom.

        With too few hospitals the round is lost.
        """
        server = self._server
        if server is None:
            return
        now = time.monotonic()
        if server.advertised is None:
            if server.waiting_for(self._waiting) and now < self._trained_until:
                return
            self._is_lost = not server.can_freeze_advertised
            if self._is_lost:
                return
            server.freeze_advertised()
            self._shared_until = now + SHARES_SECONDS
            self._changed.notify_all()
        if server.advertised is not None and server.sharing is None:
            present = self._waiting & set(server.advertised.by_name)
            if server.waiting_for_shares(present) and now < self._shared_until:
                return
            self._is_lost = not server.can_freeze_sharing
            if not self._is_lost:
                server.freeze_sharing()
            self._changed.notify_all()

    # --- what the coordinator does ------------------------------------------------------------------------

    def left(self, site: str) -> None:
        """Wait no longer for a hospital, which answered with a refusal or was lost."""
        with self._changed:
            self._waiting.discard(site)
            self._freeze()
            self._changed.notify_all()

    def upload(self, site: str, words: Words) -> None:
        """Add a masked reply. Raises Refusal as `ServerRound.upload` does."""
        with self._changed:
            if self._server is None:
                raise Refusal(reasons.SECAGG_STEP)
            self._server.upload(site, words)

    def unmask(self, seconds: float = LAST_STEPS_SECONDS) -> tuple[Words, tuple[str, ...]]:
        """Return the sum of the masked replies and the hospitals in it, when the hospitals have revealed it.

        `seconds`: how long to wait for their signatures, and then for their shares.
        Raises Refusal: E_SECAGG_TOO_FEW, E_SECAGG_SHARES, E_SECAGG_STEP.
        """
        with self._changed:
            server = self._server
            if server is None or server.sharing is None:
                raise Refusal(reasons.SECAGG_TOO_FEW, present=len(self._waiting), needed=self._needed)
            if server.uploaded is None and server.replies < self.quorum:
                raise Refusal(reasons.SECAGG_TOO_FEW, present=server.replies, needed=self.quorum)
            uploaded = server.freeze_uploaded()
            self._changed.notify_all()
            self._changed.wait_for(lambda: server.confirmations is not None, seconds)
            self._changed.wait_for(lambda: server.can_unmask, seconds)
            self._changed.wait_for(lambda: server.revealed >= set(uploaded.hospitals), SPARE_SECONDS)
        return server.unmask(), uploaded.hospitals

    @property
    def replies(self) -> int:
        """How many hospitals' replies the sum would have; 0 if they are too few for one."""
        with self._changed:
            server = self._server
            if server is None or server.sharing is None or server.replies < server.roster.threshold:
                return 0
            return server.replies

    @property
    def is_revealed(self) -> bool:
        """Whether enough hospitals have revealed their shares."""
        with self._changed:
            return self._server is not None and self._server.can_unmask

    @property
    def may_be_revealed(self) -> bool:
        """Whether some hospitals may have revealed their shares."""
        with self._changed:
            return self._server is not None and self._server.confirmations is not None

    @property
    def _needed(self) -> int:
        """The roster's threshold, for the text of a refusal."""
        return threshold_of(self.settings.sites if self.settings else 0)

    def forget(self) -> None:
        """Remove what was stored of the attempt: the new model is in a checkpoint."""
        if self._server is not None:
            self._server.forget()
