"""Child processes that always end, and the page of all reasons.

Imports no other room of `federation`. Begin with `process`.
"""
