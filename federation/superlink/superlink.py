"""Flower's SuperLink with less memory per connection, and with each node restricted to its own messages.

    python -I -m federation.superlink.superlink [OPTION...]

The options are those of `flower-superlink`. Flower 1.42 sends a whole object, up to 5 MiB, in one piece. OpenSSL then
keeps a buffer of that size as long as the connection lasts. Behind the ingress the SuperLink took 290 MB with 4
hospitals and 400 with 64; when it sends pieces, it takes 255 and 290. If 64 connect to it directly, it takes 370
instead of 740.
"""

import sys

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ENROLLED = "--enable-supernode-auth"  # an option of the SuperLink
PIECE_BYTES = 2**16  # uvicorn's limit of unsent data before it makes the application wait


class Pieces:
    """ASGI middleware that sends long responses in pieces, and drops a request's parsed form after the response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_pieces(message: Message) -> None:
            rest = memoryview(message.get("body", b""))
            while len(rest) > PIECE_BYTES:
                await send({"type": message["type"], "body": bytes(rest[:PIECE_BYTES]), "more_body": True})
                rest = rest[PIECE_BYTES:]
            await send({**message, "body": bytes(rest)} if "body" in message else message)

        await self._app(scope, receive, send_pieces)
        scope["state"].clear()  # otherwise the connection would keep it until its next request


def main() -> None:
    """Run the SuperLink until it ends.

    If nodes are enrolled, each is restricted to its own messages. That middleware runs last, after Flower has parsed
    and authenticated the request.
    """
    from federation.flower.superlink_program import run_superlink

    innermost = []
    if ENROLLED in sys.argv:
        from federation.superlink.fleet_binding import FleetBinding

        innermost.append(Middleware(FleetBinding))
    run_superlink(outermost=[Middleware(Pieces)], innermost=innermost)


if __name__ == "__main__":
    main()
