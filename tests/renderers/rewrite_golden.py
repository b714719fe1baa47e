"""Writes the golden files anew; whoever runs it looks at what changed before committing.

python tests/renderers/rewrite_golden.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.renderers.topologies import SIZES, golden_texts

if __name__ == "__main__":
    for name in SIZES:
        for path, text in golden_texts(name).items():
            path.write_text(text)
