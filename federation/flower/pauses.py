"""The pauses before a missing part of a message is asked for again: the first one, then twice as long, up to a limit.

Whoever sends a message with Flower first announces it and then sends its parts. Whoever looks for messages often
finds most of them in between.
"""

__all__ = ["FIRST_PAUSE_S", "LONGEST_PAUSE_S"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
