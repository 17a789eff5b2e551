"""Distributions over tasks: one module each, registered by name."""
