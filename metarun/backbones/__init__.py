"""Networks from inputs to features: templates called with `torch.func.functional_call`, never with hidden state."""
