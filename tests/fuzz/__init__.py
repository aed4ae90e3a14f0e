"""Fuzz every parser of foreign files with atheris: `make fuzz`, or `python -m tests.fuzz TARGET` for one parser.

targets    what is fuzzed, and the seeds
gateway    what a hostile server or a hostile app sends to the gateway
__main__   runs each target in a separate process, for a limited number of inputs
"""
