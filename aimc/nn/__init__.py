"""Modules: the per-head scalers, one layer's gain-cell attention, and the cache of K/V arrays.

`aimc.models` puts them into a model. They import the operator.
"""
