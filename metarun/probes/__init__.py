"""Probes: what an accuracy hides. One file each, for every method; see `metarun.probes.probe`."""
