"""Fuzz the gateway: what a hostile server or a hostile app may send, mutated in ways that keep all hashes valid.

choices    an input's bytes, read as decisions
mutations  one change of a protobuf message, a JSON value or a byte string
parts      a Flower message as a tree of objects, which can be changed and hashed again
world      the gateway in one process: its clock, its server, its node
scenarios  a round with a hostile server or app, then an honest one, and what must hold in both
"""
