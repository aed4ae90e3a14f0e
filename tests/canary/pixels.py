"""Find lines of pixels in bytes: any scale and offset, any number format, any byte offset, also interleaved.

The search finds at least STRETCH consecutive values of a planted line if they keep their shape, that is, if their
correlation with the line is above 0.999 or below -0.999, forwards or backwards. A reversed sign, rounding, or noise of
4 % of the contrast among 64 neighbours does not hide them. A planted stretch must show more than one edge or a slope.

The data is divided into windows of 64 values, and each window is normalised. Windows near a window of a planted line
are looked up in cells: two windows with a correlation of 0.999 differ by at most 0.045 in any direction, so also in the
first principal directions of all planted windows, in which noise and weights are small. For each candidate, the exact
correlation with every planted window of its cell is computed.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tests.canary.texts import TooWeak

WINDOW = 64
STRETCH = 2 * WINDOW - 1
CORRELATION = 0.999
MAX_STRIDE = 4
FORMATS = ("f8", "f4", "f2", "i4", "i2", "u2", "i1", "u1")
_RADIUS = float(np.sqrt(2 * (1 - CORRELATION)))
_ROUNDING = 1e-5  # tolerance of a squared distance in float32
_DIRECTIONS = 5
_COMPARED = 17  # directions in which a window and a template are compared before the exact computation
_PAIRS = 1 << 19  # pairs of a window and a template in one step
_CELL = 0.15
_CELLS = int(np.ceil(2 / _CELL)) + 3
_BLOCK = 1 << 16  # windows in one step: memory stays below about 100 MB
_SIMPLE = 0.99  # a window is rejected if two levels, or a cubic, explain this share of its variance

Windows = NDArray[np.float64]


class PixelSearch:
    """Search for all lines at once. The keys of `lines` name the findings; the values are in their order in memory.

    Raises TooWeak if a line is short, or if no stretch of it is more than an edge or a slope.
    """

    def __init__(self, lines: Mapping[str, Sequence[NDArray]]) -> None:
        self._names: list[str] = []
        parts = []
        for name, planted in lines.items():
            for line in planted:
                windows = line_windows(line)
                if not len(windows):
                    raise TooWeak(f"{name}: a line of {line.size} values has nothing to know it by")
                parts.append(windows)
                self._names += [name] * len(windows)
        self._templates = np.concatenate(parts) if parts else np.empty((0, WINDOW), np.float32)
        if parts:
            covariance = self._templates.T @ self._templates
            principal = np.linalg.eigh(covariance)[1][:, ::-1].astype(np.float64)
            self._directions, self._others = principal[:, :_DIRECTIONS], principal[:, _DIRECTIONS:_COMPARED]
            self._first, self._members = self._fill_cells()
            other = self._templates @ self._others.astype(np.float32)
            self._other_places = np.concatenate([other, -other])

    def _fill_cells(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first index of each cell, and the templates of all cells, cell by cell.

        A template belongs to all cells that its neighbourhood reaches. Its negative is a template too, numbered after
        all others.
        """
        place = self._templates @ self._directions
        place = np.concatenate([place, -place])
        count = len(place)
        found = []
        for corner in np.ndindex((2,) * _DIRECTIONS):
            shift = (np.array(corner) * 2 - 1) * _RADIUS
            found.append(_cell(place + shift) * count + np.arange(count))
        cells, members = np.divmod(np.unique(np.concatenate(found)), count)
        return np.searchsorted(cells, np.arange(_CELLS**_DIRECTIONS + 1)), members

    def find(self, data: bytes) -> Iterator[tuple[str, str, int]]:
        """Yield (name, disguise, offset) of each line found, at most one finding per line and number format."""
        if not self._names:
            return
        seen = set()
        for kind in FORMATS:
            size = np.dtype(kind).itemsize
            for order in "<>" if size > 1 else "=":
                for start in range(min(size, len(data))):
                    count = (len(data) - start) // size
                    values = np.frombuffer(data, order + kind, count=count, offset=start)
                    for name, stride, index in self._search(values):
                        disguise = _describe(order, kind, stride)
                        if (name, disguise) not in seen:
                            seen.add((name, disguise))
                            yield name, disguise, start + index * size

    def _search(self, values: NDArray) -> Iterator[tuple[str, int, int]]:
        """Yield (name, stride, index of the first value) of the planted lines in an array of numbers."""
        for stride in range(1, MAX_STRIDE + 1):
            for phase in range(stride):
                every = values[phase::stride]
                if len(every) < WINDOW:
                    continue
                windows = sliding_window_view(every, WINDOW)[::WINDOW]
                for first in range(0, len(windows), _BLOCK):
                    for name, index in self._compare(windows[first : first + _BLOCK]):
                        yield name, stride, phase + (first + index) * WINDOW * stride

    def _compare(self, windows: NDArray) -> Iterator[tuple[str, int]]:
        """Yield (name, window index) of the windows that equal a planted one up to scale and offset."""
        cells, kept = self._cells_of(windows)
        likely = np.flatnonzero(self._first[cells + 1] > self._first[cells])
        exact, valid = normalise(windows[kept[likely]])
        likely = likely[valid]
        other = (exact @ self._others).astype(np.float32)
        first = self._first[cells[likely]]
        ends = np.cumsum(self._first[cells[likely] + 1] - first)
        begin = 0
        while begin < len(likely):
            done = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, done + _PAIRS)))
            sizes = np.diff(ends[begin:end], prepend=done)
            rows = np.repeat(np.arange(begin, end), sizes)
            members = self._members[
                np.arange(len(rows)) + np.repeat(first[begin:end] - np.cumsum(sizes) + sizes, sizes)
            ]
            gap = other[rows] - self._other_places[members]
            near = np.einsum("ij,ij->i", gap, gap) < _RADIUS**2 + _ROUNDING
            rows, members = rows[near], members[near] % len(self._templates)
            correlation = np.einsum("ij,ij->i", self._templates[members].astype(np.float64), exact[rows])
            for hit in np.flatnonzero(np.abs(correlation) > CORRELATION).tolist():
                yield self._names[members[hit]], int(kept[likely[rows[hit]]])
            begin = end

    def _cells_of(self, windows: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the cells of the windows that are neither constant nor infinite, and the indices of these windows.

        This is faster than `normalise`: it sums the differences to each window's first value, in float32 if the format
        has no more digits, and subtracts the mean from the sums.
        """
        wide = np.float64 if windows.dtype.itemsize >= 4 else np.float32
        with np.errstate(all="ignore"):
            shifted = windows.astype(wide)
            if windows.dtype.itemsize == 8:
                shifted /= np.abs(shifted).max(axis=1, keepdims=True)  # keeps squares within the range
            shifted -= shifted[:, :1].copy()
            mean = shifted.mean(axis=1, dtype=wide)
            square = np.einsum("ij,ij->i", shifted, shifted) - WINDOW * mean * mean
            place = shifted @ self._directions.astype(wide) - mean[:, None] * self._directions.sum(axis=0).astype(wide)
            kept = np.flatnonzero((square > 0) & np.isfinite(square) & np.isfinite(place).all(axis=1))
            place = place[kept] / np.sqrt(square[kept, None])
            return _cell(np.clip(place, -1, 1)), kept


def normalise(windows: NDArray) -> tuple[Windows, NDArray[np.int64]]:
    """Return the windows with mean 0 and length 1, and their indices. Constant and infinite windows are left out."""
    with np.errstate(all="ignore"):
        exact = windows.astype(np.float64)
        exact /= np.abs(exact).max(axis=1, keepdims=True)  # keeps squares within the range
        exact -= exact.mean(axis=1, keepdims=True)
        length = np.sqrt(np.einsum("ij,ij->i", exact, exact))
        # Smaller differences are only rounding errors.
        kept = np.flatnonzero(np.isfinite(length) & (length > 1e-9))
        return exact[kept] / length[kept, None], kept


def line_windows(line: NDArray) -> NDArray[np.float32]:
    """Return the windows of a line, forwards and backwards, that identify it: not only an edge, a spike or a slope."""
    if line.size < STRETCH:
        return np.empty((0, WINDOW), np.float32)
    windows, _ = normalise(sliding_window_view(np.asarray(line, np.float64).ravel(), WINDOW))
    kept = windows[~_is_simple(windows)]
    return np.concatenate([kept, kept[:, ::-1]]).astype(np.float32)


def _is_simple(windows: Windows) -> NDArray[np.bool_]:
    """Return whether two levels (Otsu, IEEE Trans. SMC 9, 1979) or a cubic explain nearly all of a window."""
    sums = np.sort(windows, axis=1).cumsum(axis=1)[:, :-1]
    low = np.arange(1, WINDOW)
    levels = (sums**2 * WINDOW / (low * (WINDOW - low))).max(axis=1)
    basis, _ = np.linalg.qr(np.vander(np.linspace(-1, 1, WINDOW), 4))
    slope = ((windows @ basis) ** 2).sum(axis=1)
    return (levels > _SIMPLE) | (slope > _SIMPLE)


def _cell(place: NDArray) -> NDArray[np.int64]:
    """Return the number of the cell that contains a point."""
    index = np.floor((place + 1) / _CELL).astype(np.int64) + 1
    return index @ (_CELLS ** np.arange(_DIRECTIONS))


def _describe(order: str, kind: str, stride: int) -> str:
    name = np.dtype(kind).name + {"<": "", ">": " big endian", "=": ""}[order]
    return f"pixels as {name}" + (f", every {stride}" if stride > 1 else "")
