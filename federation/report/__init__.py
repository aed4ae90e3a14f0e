"""The report of a run: one page that opens without a network and prints, and its numbers in one JSON file.

`content` turns results into the report's numbers, all of which go into report.json. `drawing` makes figures of them,
`page` the page. Nothing on the page is worked out from results but by way of `content`.
"""
