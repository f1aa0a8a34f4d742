"""One physical effect a file: converters, cell, array, leakage, noise, activation, protection.

The operator in all its forms calls them; they know nothing of blocks or of models. They import `aimc.hardware` and
torch.
"""
