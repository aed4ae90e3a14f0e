"""The doctor: what is wrong with a site, from the machine to the data, and what to do about it.

lines          one thing looked at, and how it is
environment    machine, libraries, keys and certificates
reach          the study's server and the PACS
records        laboratory and outcome files
contract       the data contract: rules with counts
digest         the contract as one hash
duplicates     one scan under two patients
suppression    which counts may be shown to others
figure, page   the page that may be mailed
"""
