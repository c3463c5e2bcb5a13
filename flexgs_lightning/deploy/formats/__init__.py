"""Splats to and from files: one registry, and a module for each format."""
