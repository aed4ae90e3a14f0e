"""Record every frame of a network interface in a pcap file.

`python -m tests.canary.capture INTERFACE FILE` captures until SIGTERM and prints how many frames the kernel dropped. It
runs in the network namespace at the far end of the site's only link, so nothing at the site can hide a frame from it.
The file format is that of libpcap (draft-ietf-opsawg-pcap), which Wireshark reads.
"""

import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_ALL = 0x0003  # ETH_P_ALL
MAGIC = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 20, 1)
_BUFFER = 64 << 20
_FRAME = 1 << 18
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_STATISTICS = 33, 263, 6
READY = "capturing"


def capture(interface: str, path: Path) -> int:
    """Write all frames to `path` until SIGTERM. Return the number of frames that the kernel dropped."""
    ended = False

    def end(_signal: int, _frame: FrameType | None) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) as tap, path.open("wb") as file:
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        tap.bind((interface, 0))
        tap.settimeout(0.2)
        file.write(MAGIC)
        file.flush()
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        quiet = False
        while not (ended and quiet):
            try:
                frame = tap.recv(_FRAME)
            except TimeoutError:
                quiet = True
                file.flush()
                continue
            quiet = False
            now = time.time_ns() // 1000
            file.write(struct.pack("<IIII", now // 10**6, now % 10**6, len(frame), len(frame)) + frame)
        _, dropped = struct.unpack("II", tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    return dropped


def read_frames(path: Path) -> Iterator[bytes]:
    """Return the frames of a pcap file that `capture` wrote."""
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        raise ValueError("not a capture of ours")
    at = len(MAGIC)
    while at < len(data):
        length = int.from_bytes(data[at + 8 : at + 12], "little")
        yield data[at + 16 : at + 16 + length]
        at += 16 + length


if __name__ == "__main__":
    sys.stdout.write(f"{capture(sys.argv[1], Path(sys.argv[2]))}\n")
