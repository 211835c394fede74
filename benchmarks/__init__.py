"""What block-wise memory costs and saves: providers side by side on the shapes of real models."""

import sys
from pathlib import Path

# DAAD's networks are no part of the installed package: they live beside the scripts that train them.
_EXAMPLES = str(Path(__file__).resolve().parents[1] / "examples")
if _EXAMPLES not in sys.path:
    sys.path.append(_EXAMPLES)
