"""How Flower cuts an array into objects. Imports little: the gateway's description of a study needs it."""

from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES

__all__ = [
    "CHUNK_BYTES",
]
