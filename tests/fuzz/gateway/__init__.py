"""Fuzzing of the gateway: what a hostile server or a hostile app may send, mutated in ways that pass the hashes.

choices    an input's bytes, read as decisions
mutations  one change of a protobuf message, a JSON value or a byte string
parts      a Flower message as a tree of objects, to be changed and hashed anew
world      the gateway in one process: its clock, its server, its node
scenarios  a round with a hostile server or app, then an honest one: what must hold whatever they send
"""
