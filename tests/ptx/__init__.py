"""A processor of PTX: what Triton compiles for an NVIDIA GPU, computed on a CPU instruction by instruction."""
