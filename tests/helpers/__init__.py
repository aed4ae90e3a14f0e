"""What the tests of several rooms share: synthetic files, grids, results; no test is here."""
