"""Runs one contender in this process, which does nothing else, and prints what it needed as JSON."""

import json
import sys
import time
from pathlib import Path

import contenders


def peak_mb() -> float:
    """Peak resident memory of this program; getrusage would count that of the process it was started from."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main(contender: str, folder: str) -> None:
    began = time.perf_counter()
    work = getattr(contenders, contender)()
    imported, processor = time.perf_counter(), time.process_time()
    work(Path(folder))
    run = {
        "wall_s": time.perf_counter() - imported,
        "processor_s": time.process_time() - processor,
        "import_s": imported - began,
        "peak_mb": peak_mb(),
    }
    print(json.dumps(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
