"""Plots of an inspection: functions from arrays to matplotlib figures, nothing computed."""
