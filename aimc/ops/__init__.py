"""The attention operator: :mod:`aimc.ops.attention` is its door, :mod:`aimc.ops.eager` its truth, `blocked`, `triton`
and `decode` its other forms.

Modules, measurements and notebooks call it. It imports `aimc.hardware` and torch, nothing of transformers.
"""
