"""Randomised anatomy with label maps, from which the lung segmenter learns. It needs no patient.

`frame` holds the coordinates, `trunk` the wall of the chest and its bones, `chest` the lungs and what lies between
them, `abdomen` what lies below, `trees` vessels and bronchi, `disease` what changes lungs, `acquisition` what a scanner
adds. Begin with `sample`, which puts them together.
"""
