"""Trains a network at one site: the training step, differential privacy with its budget, the head's fit.

May import every room below `clinic`. Begin with `train`.
"""
