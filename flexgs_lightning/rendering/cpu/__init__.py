"""Numba kernels of the CPU backend: projection, tiles and blending."""
