"""`python -m vkq_apps.training`: see `vkq_apps.training.train`."""

import sys

from vkq_apps.training.train import main

if __name__ == "__main__":
    sys.exit(main())
