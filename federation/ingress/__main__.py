"""`python -m federation.ingress SERVER_DIR`: the door as a process."""

import asyncio
import logging
import signal
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from federation.ingress.listener import serve

LOG_BYTES, LOG_FILES = 16 * 2**20, 5


def main(folder: Path) -> None:
    """Run the door of the server in `folder`; what it refuses and grants goes to logs/door.log."""
    handler = RotatingFileHandler(
        folder / "logs" / "door.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8"
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(asctime)s %(message)s")
    asyncio.run(_until_told(folder))


async def _until_told(folder: Path) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await serve(folder, ended)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
