"""Makes `trl_world` importable for the tests of this folder in every import mode of pytest."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
