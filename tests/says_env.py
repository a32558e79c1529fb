"""`python -m tests.says_env FOLDER`: leave this process's environment in FOLDER/env, as `env -0` prints it."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    Path(sys.argv[1], "env").write_bytes(b"".join(key + b"=" + value + b"\0" for key, value in os.environb.items()))
