"""Bytes against quality: this package's file and those of other systems, measured as they are read back."""
