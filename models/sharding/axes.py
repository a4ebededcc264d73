"""Names of the axes of a mesh that fits a model, see `models.families.mesh_fit.fit_mesh`."""

__all__ = ["DATA", "GROUP", "KV_HEADS", "MODEL"]

DATA = "data"
"""Sequences are split over it."""
KV_HEADS = "kv_heads"
"""KV heads are split over it."""
GROUP = "group"
"""Devices that share a KV head, where there are more devices than heads."""
MODEL = (KV_HEADS, GROUP)
"""The two axes that `model` of a mesh becomes: weights are split over both."""
