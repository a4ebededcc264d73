"""The visual keys and values of one prompt: measurements and plots of them."""
