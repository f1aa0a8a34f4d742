"""Names of a study's parts, for configs, which import no torch."""

PARTS = ("sensitivity", "tolerance", "specification", "layers", "grid")
"""In the order in which they are measured."""
