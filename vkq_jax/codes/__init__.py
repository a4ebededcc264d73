"""Codes of one tensor: levels, signs, mixtures of both, and what all of them share."""
