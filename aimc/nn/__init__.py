"""Modules: the per-head scalers and one layer's gain-cell attention."""
