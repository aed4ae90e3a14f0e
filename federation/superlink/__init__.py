"""Flower's SuperLink as the study's server runs it: each node restricted to its own messages; its Control API.

May import `federation.system`. Begin with `control`.
"""
