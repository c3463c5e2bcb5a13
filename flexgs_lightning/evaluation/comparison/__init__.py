"""Rival methods and ablations beside each other: one first stage, one rasterizer, the same held-out views."""
