"""Byte counts as people read them."""

__all__ = ["human_bytes"]


def human_bytes(count: int) -> str:
    """A byte count with a binary unit: 1536 -> '1.5 KiB'."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
