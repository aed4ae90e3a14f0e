"""The reports for whoever helps with a problem of a node, a server or a clinic (`support-report`).

A report holds nothing that a person or a file could have chosen: numbers, times of this program, and words that the
release itself contains (codes, states, names of settings). What cannot be told from such words is left out. Begin with
`sections`, then read what a role puts in: `node_report`, `server_report`, `clinic_report`.
"""
