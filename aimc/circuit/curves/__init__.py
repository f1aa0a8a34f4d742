"""A gain cell from curves, measured or simulated: read a sweep, fit charge, surface, retention or a transistor to it.

Every fit says how far it misses the data, in steps between storage levels where a level count is given.
"""
