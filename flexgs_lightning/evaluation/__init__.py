"""Comparisons, benchmarks and the tables and curves that report them."""
