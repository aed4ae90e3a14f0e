"""Adaptation of a release to one hospital, by its own scans without labels; the weights stay.

May import every room below `clinic`. Begin with `adapt`.
"""
