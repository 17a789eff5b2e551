"""Frozen networks and fixed rules that turn a picture or a string into features: one module each, by name."""
