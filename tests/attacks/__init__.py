"""Attacks of a hostile server on the real gateway and the release's own app: `python -m tests.attacks`.

Each module holds attacks of one kind; each attack is a function that returns a `Result`. `rig` holds the shared parts:
a hospital with a synthetic cohort, its gateway, and a node that answers with the real app. Each attack was first shown
to succeed without its guard. With the guard it must learn nothing.
"""
