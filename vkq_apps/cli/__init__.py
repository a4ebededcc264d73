"""The `vkq` command."""
