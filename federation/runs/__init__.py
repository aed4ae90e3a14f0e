"""A study's runs: launched, watched, resumed, listed, tracked in MLflow; what a finished run found.

May import `server`, `strategy`, `protocol` and what is below. Begin with `launch`.
"""
