"""Where each bit lies, and coded tensors whose words lie so."""
