"""Gateway tests use the HTTP tests' listener and raw client."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "http"))
