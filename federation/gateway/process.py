"""Start a site's gateway from its node."""

import sys
from pathlib import Path

from federation.system.process import LOOPBACK, Process, flower_environment, port_is_taken
from pipeline.site.folder import Site

START_SECONDS = 60.0


def start_gateway(site: Site, *, port: int, log: Path) -> Process:
    """Start the site's gateway and wait until it listens on `port` of loopback.

    Raises Refusal E_NOT_STARTED; the cause is in `log`.
    """
    process = Process(
        "the gateway",
        [sys.executable, "-P", "-m", "federation.gateway", str(port)],
        log=log,
        environment=flower_environment(
            site.folder / "flower_home",
            FEDTHORAX_SITE_DIR=str(site.folder),
            # By default, the C library reserves memory for every thread and rarely returns large blocks.
            MALLOC_ARENA_MAX="1",
            MALLOC_MMAP_THRESHOLD_="524288",
            MALLOC_TRIM_THRESHOLD_="262144",
        ),
    )
    process.wait_until(lambda: port_is_taken(LOOPBACK, port), seconds=START_SECONDS)
    return process
