"""Captures: photos with cameras, from files to batches."""
