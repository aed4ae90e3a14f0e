"""Evaluation of a model at one site: discrimination, calibration, subgroups, shortcuts, and the released metrics."""
