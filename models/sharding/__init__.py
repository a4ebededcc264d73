"""A model over a mesh of devices: which axis of which array is split over which devices."""
