"""Fuzzing of every parser of foreign files with atheris: `make fuzz`, or `python -m tests.fuzz TARGET` for one.

targets    what is fuzzed, from which seeds
gateway    what a hostile server and a hostile app send to the gateway
__main__   runs each target in a process of its own, for a bounded number of inputs
"""
