"""The tests of tests/sharding, on eight CPU devices in one process."""

import os
import subprocess
import sys
from pathlib import Path

FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)


def test_on_eight_devices():
    folder = Path(__file__).parent / "sharding"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not mesh", str(folder)],
        cwd=folder.parents[1],
        env=os.environ | {"XLA_FLAGS": FLAGS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
