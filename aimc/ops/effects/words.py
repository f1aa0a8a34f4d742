"""Numbers of the generator's format: every form of it takes them from here, in PyTorch, compiled and in Triton."""

MIX_A, MIX_B = 0x21F0AAAD, 0x735A2D97
SPREAD = 0x1E3779B9
"""Odd; takes small neighbouring coordinates to distant words before they are mixed."""
LANES = (0x243F6A88, 0x13198A2E)
"""First states of the two lanes, one per uniform of Box-Muller: digits of π. Two 32-bit lanes make coinciding draws
improbable."""
HALF = 8
"""Pairs in a group of the last coordinate: half of its numbers."""
