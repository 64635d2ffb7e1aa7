"""This computer: memory and its limits, threads, forks. Knows no model."""
