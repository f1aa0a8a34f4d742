"""The operator as Triton kernels for NVIDIA GPUs.

:mod:`aimc.ops.attention` calls it. It imports effects and what all forms of the operator share; only it imports triton.
"""
