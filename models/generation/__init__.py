"""From inputs to answers: prefill, decoding and the choice of tokens."""
