"""`python -m tests.fuzz`: fuzz every target, one after the other. With a TARGET: fuzz that one in this process."""

import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from models.refusal import Refusal
from tests.fuzz.targets import TARGETS

SECONDS_AN_INPUT = 5
SECONDS_A_TARGET = 120  # limit, whatever the number of runs
MEGABYTES = 512
SHARED_MEMORY = Path("/dev/shm")  # in memory, because each input is a file and a disk would be the slowest part


def fuzz(name: str) -> None:
    """Never return: libFuzzer ends the process, with status 0 if nothing was found."""
    import atheris

    target = TARGETS[name]
    temporary = TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
    folder = Path(temporary.name)
    corpus = folder / "corpus"
    corpus.mkdir()
    path = folder / target.file

    def one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            parse(path)
        except Refusal as refusal:
            if not refusal.code.startswith("E_") or str(folder) in str(refusal):
                raise

    with atheris.instrument_imports(include=["pipeline", "federation", "pydicom", "hl7", "zipfile"]):
        parse = target.prepare(folder)
        for number, seed in enumerate(target.seeds(folder)):
            (corpus / str(number)).write_bytes(seed)
            path.write_bytes(seed)
            parse(path)  # seeds are valid; imports that only happen now are instrumented too

    options = [f"-runs={target.runs}", f"-max_total_time={SECONDS_A_TARGET}", f"-timeout={SECONDS_AN_INPUT}"]
    options += [f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix=fuzz-{name}-", "-max_len=8192"]
    options += ["-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Return 1 if any target has a finding; the input is then in the current folder."""
    failed = False
    for name in TARGETS:
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "tests.fuzz", name], capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        if done.returncode != 0:
            failed = True
            sys.stdout.write(f"{name}: FOUND\n{done.stdout}{done.stderr}\n")
            continue
        inputs, megabytes = (
            int(re.findall(rf"stat::{stat}: *(\d+)", done.stderr)[-1])
            for stat in ("number_of_executed_units", "peak_rss_mb")
        )
        sys.stdout.write(f"{name}: nothing in {inputs} inputs, {seconds:.0f} s, at most {megabytes} MB\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        fuzz(sys.argv[1])
    else:
        sys.exit(main())
