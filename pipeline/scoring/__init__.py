"""Scores one scan: reads and preprocesses it, runs the model, checks the quality, writes the HTML page.

May import `preprocessing`, `imaging`, `records` and `system`. Begin with `score`.
"""
