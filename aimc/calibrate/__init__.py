"""Bring a converted model to where its hardware works, without a gradient: statistics matching, range calibration, what
they observe.

Measurements and the pipeline call it. It imports `aimc.models` and below.
"""
