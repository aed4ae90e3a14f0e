"""The report of a run: one HTML page that opens offline and prints, and its numbers in one JSON file.

`content` computes all numbers of the report from the results; they are written to report.json. `drawing` draws the
figures and `page` writes the page, both from `content` only. Begin with `content`, then `page`.
"""
