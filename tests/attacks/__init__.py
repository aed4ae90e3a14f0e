"""Attacks of a hostile server, run against the real gateway and the release's own app: `python -m tests.attacks`.

Each module holds the attacks of one kind, each attack is a function that returns a `Result`. `rig` has what they share:
a hospital with a synthetic cohort, its gateway, and a node that answers with the real app. An attack must first be
shown to succeed where its guard is missing; afterwards it must learn nothing.
"""
