"""The operator in blocks, forward and backward by hand: PyTorch on a CPU or CUDA.

:mod:`aimc.ops.attention` calls it. It imports effects and what all forms of the operator share.
"""
