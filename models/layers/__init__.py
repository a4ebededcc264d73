"""Layers that all towers share."""
