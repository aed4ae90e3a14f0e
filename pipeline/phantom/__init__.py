"""Synthetic hospitals: chest CT phantoms, laboratory and outcome files, and the defects planted in them.

Nothing in here is a patient. The phantoms exist so that the whole loop can be run, tested and measured where no
hospital's data may go, and so that the best possible reader is known.
"""
