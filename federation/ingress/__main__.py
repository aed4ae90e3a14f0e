"""Run the ingress as a process: `python -m federation.ingress SERVER_DIR`."""

import asyncio
import logging
import signal
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from federation.ingress.listener import serve

LOG_BYTES, LOG_FILES = 16 * 2**20, 5


def main(folder: Path) -> None:
    """Run the ingress of the server in `folder`. It logs what it refuses and grants to logs/door.log."""
    handler = RotatingFileHandler(
        folder / "logs" / "door.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8"
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(asctime)s %(message)s")
    asyncio.run(_until_stopped(folder))


async def _until_stopped(folder: Path) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await serve(folder, ended)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
