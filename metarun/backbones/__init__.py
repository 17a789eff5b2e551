"""Networks from inputs to features: templates without hidden state, called through `metarun.core.inner.forward`."""
