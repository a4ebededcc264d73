"""A cache on several devices and hosts."""
