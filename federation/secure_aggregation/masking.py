"""Masks: streams of ChaCha20 that are added to a vector of 32-bit words, modulo 2^32.

One key gives one stream, and one stream covers all arrays of a reply. A key is never used twice: it depends on fresh
random keys of the attempt.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

PIECE_WORDS = 2**16  # 256 KiB fit into the processor's cache, beside the stream
_NO_NONCE = bytes(16)  # block counter and nonce; each key is used for one stream only

Words = NDArray[np.uint32]


class _Stream:
    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(ChaCha20(key, _NO_NONCE), mode=None).encryptor()

    def next(self, zeros: memoryview, into: memoryview) -> NDArray[np.uint32]:
        """Return the next words of the stream, in `into`, which has the length of `zeros`."""
        self._encryptor.update_into(zeros, into)
        return np.frombuffer(into, "<u4")


class Masks:
    """The masks of one reply. `keys`: each with 1 to add its stream, or -1 to subtract it."""

    def __init__(self, keys: Iterable[tuple[bytes, int]]) -> None:
        self._streams = [(_Stream(key), sign) for key, sign in keys]
        self._zeros, self._buffer = bytes(4 * PIECE_WORDS), bytearray(4 * PIECE_WORDS)

    def apply(self, words: Words) -> None:
        """Add the next part of all streams to `words`, in place. Calls must cover the vector in order."""
        for start in range(0, len(words), PIECE_WORDS):
            piece = words[start : start + PIECE_WORDS]
            zeros, into = (memoryview(each)[: 4 * len(piece)] for each in (self._zeros, self._buffer))
            for stream, sign in self._streams:
                mask = stream.next(zeros, into)
                (np.add if sign > 0 else np.subtract)(piece, mask, out=piece)


def masked(pieces: Iterable[Words], masks: Masks) -> Iterator[Words]:
    """Yield the pieces of a vector with their masks; the pieces are overwritten."""
    for words in pieces:
        masks.apply(words)
        yield words
