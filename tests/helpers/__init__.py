"""Helpers shared by several test folders: synthetic files, grids and results. Contains no tests."""
