"""Command lines in one of two processes that share a mesh, see `tests/sharding/test_hosts.py`."""

import json
import os
import sys
import time

from models.calibration import codes as code_calibration
from tests.sharding.cases import RIVALS
from vkq_apps.cli.main import main
from vkq_apps.terminal.hosts import join_hosts, leave_hosts

if __name__ == "__main__":
    code_calibration.calibrated_presets = {"vkq-1bit": RIVALS[:1]}
    number = os.environ["JAX_PROCESS_ID"]
    for command in json.loads(sys.argv[1]):
        if command[0] == "fail":  # the others work on
            join_hosts()
            if number == command[1]:
                leave_hosts(3)
            time.sleep(100)
        try:
            main([part.replace("{n}", number) for part in command])
        except SystemExit as ended:
            if ended.code:
                raise
