"""Dialects: what other people's viewers make of a Gaussian, and files that look there as they do here."""
