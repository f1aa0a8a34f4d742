"""One physical effect a file: converters, noise, leakage, cell, array, columns, activation, protection.

The operator in all its forms calls them; they know nothing of blocks or of models. They import `aimc.hardware` and
torch.
"""
