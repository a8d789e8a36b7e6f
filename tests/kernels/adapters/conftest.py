"""Lets the tests of this folder import `trl_world` under every import mode of pytest."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
