"""What one thread block of attention does."""
