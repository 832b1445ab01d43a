"""Let the tests of this folder import its helpers: `wkv7_check`, `wkv7_oracle`, `wkv7_problems`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
