"""Compare the results of runs, attack the model of a release, and sign a release.

May import `runs` and what is below. Begin with `compare_runs`.
"""
