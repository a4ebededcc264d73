"""Text towers."""
