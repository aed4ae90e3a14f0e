"""Run the gateway: `python -m federation.gateway PORT`, with the site's folder in FEDTHORAX_SITE_DIR.

The folder is an environment variable because any user of the machine can read a process's command line.
"""

import asyncio
import logging
import os
import ssl
import sys
from pathlib import Path

from aiohttp import web

from federation.approval.approvals import Approvals
from federation.enrolment.certificates import client_tls
from federation.enrolment.join import node_certificate, renew_if_due
from federation.gateway.credentials import NodeKey
from federation.gateway.loopback import loopback_tls
from federation.gateway.masked_rounds import present_key
from federation.gateway.proxy import make_app
from federation.gateway.spool import Spool
from federation.gateway.task_exchange import Exchange
from federation.gateway.upstream import Upstream
from federation.ledger.chain import Ledger, ledger_file
from federation.system.process import GRACE_SECONDS, LOOPBACK
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.site.study_server import server_proxy

DAY_SECONDS = 24 * 3600.0

log = logging.getLogger("fedthorax.gateway")


def main(site: Site, port: int) -> None:
    """Serve until SIGTERM. Raises Refusal if the ledger cannot be written."""
    key = NodeKey(site)
    address = site.settings.server.address
    upstream = Upstream(address, key, node_tls(site), proxy=server_proxy(site, address))
    ledger, approvals, spool = Ledger(ledger_file(site)), Approvals(site), Spool(site.folder / "gateway")
    web.run_app(
        make_app(
            key,
            upstream,
            lambda: Exchange(site, upstream, ledger=ledger, approvals=approvals, spool=spool),
            keep_certificate(site, upstream),
            present_key(site, upstream),
        ),
        host=LOOPBACK,
        port=port,
        ssl_context=loopback_tls(site),
        access_log=None,
        print=None,
        shutdown_timeout=GRACE_SECONDS / 2,  # otherwise a request delays the end until the node kills the gateway
    )


async def keep_certificate(site: Site, upstream: Upstream, *, every_seconds: float = DAY_SECONDS) -> None:
    """Every day, renew the node's certificate if it is due, and load a certificate that another process renewed."""
    shown = node_certificate(site).read_bytes()
    while True:
        try:
            await asyncio.to_thread(renew_if_due, site)
            if (newest := node_certificate(site).read_bytes()) != shown:
                await upstream.show(node_tls(site))
                shown = newest
                log.info("the node has a new certificate")
        except Refusal as refusal:  # the present one is valid for weeks; then the server refuses it
            log.warning("the node's certificate could not be renewed: %s %s", refusal, refusal.private)
        except Exception:  # for example a full disk; try again tomorrow
            log.exception("the node's certificate could not be renewed")
        await asyncio.sleep(every_seconds)


def node_tls(site: Site) -> ssl.SSLContext:
    """Return the TLS context in which the node shows its certificate to the server."""
    return client_tls(site.ca_certificate, certificate=node_certificate(site), private_key=site.node_key)


class OneLine(logging.Formatter):
    """Log each message as one line of printable characters, because it may quote the server or the study's code."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in record.message)
        return super().formatMessage(record)


if __name__ == "__main__":
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        main(Site.open(Path(os.environ["FEDTHORAX_SITE_DIR"])), int(sys.argv[1]))
    except Refusal as refusal:
        log.error("%s %s", refusal, refusal.private)
        sys.exit(1)
