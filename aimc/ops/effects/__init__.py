"""One physical effect a file: converters, noise, leakage, cell, array, columns, activation, protection.

The operator in all its forms calls them; they know nothing of blocks or of models. Of `aimc` they import the hardware,
the scalers (`aimc.ops.scaling`) and the compiled passes over numbers (`aimc.ops.compiled`).
"""
