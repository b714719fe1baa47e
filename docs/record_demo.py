"""Plays the real demo and draws what it prints: `python docs/record_demo.py` writes docs/demo.svg.

Rules: nothing in the picture was typed by hand. Opening it fetches nothing, since it names the
fonts of whoever looks at it and no others.
"""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path

from rich.console import Console

from reconciler.cli.demo import Teller
from reconciler.devkit.demo import tell

PICTURE = Path(__file__).with_name("demo.svg")
STAGE = Path("/tmp/gpuaas-demo")  # noqa: S108 - shows in the picture; the demo checks its mark
COLUMNS = 126
FONTS = "ui-monospace, 'Fira Code', 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def svg_format() -> str:
    """Rich's template without the web fonts."""
    template = inspect.signature(Console.export_svg).parameters["code_format"].default
    local = re.sub(r"@font-face \{\{.*?\}\}\s*", "", template, flags=re.DOTALL)
    return local.replace("Fira Code, monospace", FONTS).replace("arial", "sans-serif")


def main() -> None:
    console = Console(
        file=io.StringIO(), record=True, width=COLUMNS, force_terminal=True,
        color_system="truecolor", highlight=False, soft_wrap=True, legacy_windows=False,
    )  # fmt: skip
    console.print("$ make demo", style="bold")
    tell(STAGE, None, False, Teller(console))
    console.print("\nEverything is taken down.", style="green")
    picture = console.export_svg(title="make demo", code_format=svg_format(), unique_id="demo")
    # A blank at the end of a line shows nowhere, but makes the file differ from editor to editor.
    PICTURE.write_text(re.sub(r"[ \t]+$", "", picture, flags=re.MULTILINE))


if __name__ == "__main__":
    main()
