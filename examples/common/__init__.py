"""What the small examples share; their processes are run by the launcher of the chat."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "chat"))
