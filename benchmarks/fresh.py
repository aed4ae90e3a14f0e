"""Runs one contender in this process, which does nothing else, and prints what it needed as JSON.

With "warm" as a third argument the work is done once before it is measured.
"""

import json
import sys
import time
from pathlib import Path

import contenders


def peak_mb(process: int | str = "self") -> float:
    """Peak resident memory of a program; getrusage would count that of the process it was started from."""
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main(contender: str, folder: str, warm: str = "") -> None:
    began = time.perf_counter()
    work = getattr(contenders, contender)()
    import_s = time.perf_counter() - began
    if warm:
        work(Path(folder))
    wall, processor = time.perf_counter(), time.process_time()
    work(Path(folder))
    run = {
        "wall_s": time.perf_counter() - wall,
        "processor_s": time.process_time() - processor,
        "import_s": import_s,
        "peak_mb": peak_mb(),
    }
    print(json.dumps(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
