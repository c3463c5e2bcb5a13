"""Benchmarks: every scene trained and measured by a paper's protocol, and reported beside its figures."""
