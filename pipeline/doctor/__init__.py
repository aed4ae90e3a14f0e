"""The checks of `fedthorax node check`: problems of a site, from the machine to the data, and their remedies.

environment    machine, libraries, keys and certificates
connectivity   the study's server and the PACS
records        laboratory and outcome files
contract       the data contract: rules with counts
digest         the contract as one hash
duplicates     one scan under two patients
suppression    rules for the counts that others may see
figure, page   the HTML page, which may be sent to others
"""
