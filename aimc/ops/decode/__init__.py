"""The operator token by token: what the cells hold between tokens, and how the next ones read and overwrite it.

The attention module and its cache call it. It imports the rest of the operator.
"""
