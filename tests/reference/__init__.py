"""Slow forms that are right at a glance; the package is tested against them."""
