"""The version of metarun; RELEASING.md says when it changes."""

__version__ = "0.1.0"
