"""Processes with a certain end, and the table of reasons.

Imports no other room of `federation`. Begin with `process`.
"""
