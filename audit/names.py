"""How names tell programs from people."""

SIMULATED_PREFIX = "simulated-"
"""Begins the name of every program that plays an auditor, and of no person."""
