"""Synthetic hospitals: chest CT phantoms, laboratory and outcome files, and the defects planted in them.

Nothing here comes from a patient. With phantoms the whole system can be run, tested and measured without hospitals'
data, and the best possible performance is known.
"""
