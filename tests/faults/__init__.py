"""Trials of faults: `make faults` kills, corrupts, fills disks and misspells, and writes the table in docs/faults.md.

Not collected by pytest, whose tests have each kind of fault once; here are many of each, at random. It imports `train`.
"""
