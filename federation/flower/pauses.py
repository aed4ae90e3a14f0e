"""The pauses before a missing part of a message is asked for again: the first one, then twice as long, up to a limit.

Whoever sends a message with Flower first announces it and then sends its parts. Whoever looks for messages often
finds most of them in between.
"""

from typing import TypedDict

__all__ = ["FIRST_PAUSE_S", "LONGEST_PAUSE_S"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


class _Pauses(TypedDict):
    initial_backoff: float
    backoff_cap: float
    max_tries_per_object: None


# For Flower's own functions. Its limit of 500 attempts is meant for pauses of 10 s, which a slow line may need. Without
# it the limit is two hours, or the end of the round. The SuperLink forgets a message three minutes after its sender
# stopped.
SHORT_PAUSES: _Pauses = {
    "initial_backoff": FIRST_PAUSE_S,
    "backoff_cap": LONGEST_PAUSE_S,
    "max_tries_per_object": None,
}
