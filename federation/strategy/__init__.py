"""Makes one model of the hospitals' replies: the guarded strategy, aggregation, sampling, checkpoints.

May import `protocol` and what is below. Begin with `guarded`.
"""
