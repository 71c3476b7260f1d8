"""Faults on a real cluster, from a scenario and a seed, and a verdict on what it did meanwhile."""
