"""`python -m vkq_apps.training`: see `vkq_apps.training.train`."""

from vkq_apps.terminal.program import run_module

if __name__ == "__main__":
    run_module("vkq_apps.training.train")
