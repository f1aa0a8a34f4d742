"""A gain cell from physics: the compact transistor, the cell made of three of them, how it is written and forgets, and
two technologies.

Everything is in SI units and numpy; nothing here knows a model, an array or a cost.
"""
