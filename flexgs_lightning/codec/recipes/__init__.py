"""Recipes: how other systems put Gaussians into files, written from their papers."""
