"""Representations of a scene that moves beside each other: quality, small sizes, and bytes."""
