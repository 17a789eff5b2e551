"""Learning methods: one module each, nothing but the paper's maths. Every function sees one task."""
