"""Contains what all rooms use: atomic files, locks, memory settings, templates, findings, codes of reasons.

May import only `models`. Begin with `findings` and `codes`.
"""
