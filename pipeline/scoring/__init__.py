"""Scores one scan: reads it, prepares it, asks the model, checks the quality, writes the page.

May import `preprocessing`, `imaging`, `records` and `system`. Begin with `score`.
"""
