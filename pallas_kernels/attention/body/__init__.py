"""The work of one thread block of attention."""
