"""A gateway that keeps a copy of each reply that it is about to mask: what would leave if nothing were masked.

Masked bytes are blind: no scan finds anything in them. So the proof scans the plaintext between the gateway's checks
and its masks. The copy is made here, around the one call that masks; the product has no such door.

`python -m tests.canary.recording SITE` runs the site's node with such a gateway, as `fedthorax node start SITE` does.
The copies are in the folder COPIES of the site's folder.
"""

import os
import runpy
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

COPIES = "plaintext-of-masked-replies"
_GATEWAY = "federation.gateway"

Mask = Callable[..., Awaitable[Any]]


def recorded(mask: Mask, site: Path) -> Mask:
    """Return `MaskedRounds.mask` with a copy of the reply, composed as an unmasked one is composed, in a site's folder.

    The chunks are read where the gateway checked them and from where it masks them.
    """
    from federation.gateway.reply import compose_records

    async def mask_and_keep(self: Any, task: Any, content: Any, values: Any, *rest: Any) -> Any:
        composed = compose_records(content, values).objects.values()
        chunks = [(site / "gateway" / "out" / id).read_bytes() for id in content.chunks()]
        (site / COPIES).mkdir(exist_ok=True)
        (site / COPIES / f"{task.run.name}-{task.kind}-{task.round:03}").write_bytes(b"".join((*composed, *chunks)))
        return await mask(self, task, content, values, *rest)

    return mask_and_keep


def copies(site: Path) -> list[Path]:
    """Return the copies of a site, in the order of the rounds of each run."""
    return sorted((site / COPIES).glob("*"))


def _gateway(port: str) -> None:
    """Run the gateway as a process of its own, with the recorder."""
    from federation.gateway.masked_rounds import MaskedRounds

    site = Path(os.environ["FEDTHORAX_SITE_DIR"])
    MaskedRounds.mask = recorded(MaskedRounds.mask, site)  # type: ignore[method-assign]
    sys.argv = [_GATEWAY, port]
    runpy.run_module(_GATEWAY, run_name="__main__")


def _node(site: Path) -> None:
    """Run the node in the foreground; only the program of its gateway is another one."""
    from federation.cli.console import say
    from federation.gateway import process
    from federation.node.start import run_node
    from federation.system.process import Process
    from pipeline.site.folder import Site

    class WithRecorder(Process):
        def __init__(self, name: str, command: list[str], **named: Any) -> None:
            place = command.index(_GATEWAY)
            here = [sys.executable, str(Path(__file__)), *command[place + 1 :]]
            super().__init__(name, here, **named)

    process.Process = WithRecorder  # type: ignore[misc]
    run_node(Site.open(site), say)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    argument = sys.argv[1]
    if argument.isdecimal():
        _gateway(argument)
    else:
        _node(Path(argument))
