"""Run one contender in this process, which does nothing else, and print its cost as JSON.

With "warm" as third argument the work is done once before the measurement.
"""

import json
import sys
import time
from pathlib import Path

import contenders


def peak_mb(process: int | str = "self") -> float:
    """Return the peak resident memory of this program; getrusage would include that of its parent process."""
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
