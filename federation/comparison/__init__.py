"""Compares and releases what runs made: runs side by side, attacks on a release, the signed release.

May import `runs` and what is below. Begin with `compare_runs`.
"""
