"""Flower's SuperLink as the study's server runs it: bound to its nodes, asked through its Control API.

May import `federation.system`. Begin with `control`.
"""
