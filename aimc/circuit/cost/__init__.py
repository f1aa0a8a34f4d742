"""Energy, latency and area: of attention on arrays, of static tiles, of the whole model and chip.

Designs, figures and the pipeline call it. It imports the circuit and `aimc.hardware`.
"""
