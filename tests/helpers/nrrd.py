"""Reads the NRRD label map of the real thorax."""

import gzip
from pathlib import Path

import numpy as np


def read_nrrd(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels (slices, rows, columns), LPS origin and spacing (x, y, z). Supports only this NRRD variant."""
    head, _, packed = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    labels = np.frombuffer(gzip.decompress(packed), "<u2")
    directions = [
        [float(number) for number in vector.strip("()").split(",")] for vector in fields["space directions"].split()
    ]
    origin = [float(number) for number in fields["space origin"].strip("()").split(",")]
    shape = tuple(int(size) for size in fields["sizes"].split())[::-1]
    return labels.reshape(shape), np.array(origin), np.diag(directions)
