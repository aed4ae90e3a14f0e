"""Combine the hospitals' replies into one model: the guarded strategy, aggregation, sampling, checkpoints.

May import `protocol` and the rooms below it. Begin with `guarded`.
"""
