"""A site's node: its processes, its state, and the sandbox in which a study's code runs.

Begin with `start`, then `sandbox`.
"""
