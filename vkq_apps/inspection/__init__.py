"""What the visual KV of one prompt looks like: measuring it, and plots of what was measured."""
