"""metarun: train, test and compare few-shot and meta-learning methods."""

__version__ = "0.1.0"
