"""The runs of a study: launch, follow, resume, list, track in MLflow, and read the results.

May import `server`, `strategy`, `protocol` and what is below. Begin with `launch`.
"""
