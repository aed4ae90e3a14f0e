"""Read what a program prints, line by line, and tell why it printed nothing."""

import subprocess


def next_line(program: subprocess.Popen[str]) -> str:
    """Return the next line of the program's stdout, without its end.

    Fails with the program's exit code and its stderr, if that is a pipe, when the program has closed its stdout.
    """
    assert program.stdout is not None
    if line := program.stdout.readline():
        return line.rstrip("\n")
    _, errors = program.communicate(timeout=60)
    raise AssertionError(f"{program.args!r} ended with {program.returncode} before its next line:\n{errors}")
