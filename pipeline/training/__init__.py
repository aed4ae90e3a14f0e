"""Training of a network at one site: the training step, differential privacy and its budget, head fine-tuning.

May import every room below `clinic`. Begin with `train`.
"""
