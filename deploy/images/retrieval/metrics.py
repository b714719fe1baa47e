"""One page with the metrics of all services, each sample with the service that it is of.

`TARGETS` is `name=url,…`. What does not answer is `up` 0, and the others are there all the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from deploy.images.plain.http_app import METRICS_TEXT, Answer, App, run
from deploy.images.plain.http_client import Unanswered, ask

PORT = 9090
TIMEOUT_S = 1.0
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")


def targets(text: str) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in text.split(",") if entry)
    return {name.strip(): url.strip() for name, _, url in pairs}


def merged(pages: Mapping[str, str | None]) -> str:
    """Their pages as one; None is one that did not come."""
    families: dict[str, list[str]] = {}
    comments: dict[str, list[str]] = {}
    for service, page in sorted(pages.items()):
        family = ""
        for line in (page or "").splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ")[2]
                said = comments.setdefault(family, [])
                if line.split(" ")[1] not in [one.split(" ")[1] for one in said]:
                    said.append(line)
            elif found := _SAMPLE.fullmatch(line):
                name, labels, value = found.groups()
                inside = ",".join(part for part in (f'service="{service}"', labels) if part)
                families.setdefault(family or name, []).append(f"{name}{{{inside}}} {value}")
    lines = ["# HELP up Whether the service answered.", "# TYPE up gauge"]
    for service, page in sorted(pages.items()):
        lines.append(f'up{{service="{service}"}} {int(page is not None)}')
    for family, samples in sorted(families.items()):
        lines += [*comments.get(family, []), *samples]
    return "".join(f"{line}\n" for line in lines)


def fetch(url: str) -> str | None:
    try:
        status, page = ask(url, TIMEOUT_S)
        return page.decode() if status == 200 else None
    except (Unanswered, UnicodeDecodeError):
        return None


def app(asked: Mapping[str, str]) -> App:
    def page() -> bytes:
        with ThreadPoolExecutor(max(len(asked), 1)) as at_once:
            pages = at_once.map(fetch, asked.values())
            return merged(dict(zip(asked, pages, strict=True))).encode()

    return App(
        {
            ("GET", "/health"): lambda _: Answer(),
            ("GET", "/metrics"): lambda _: Answer(page(), 200, METRICS_TEXT),
        }
    )


def main() -> None:
    run(app(targets(os.environ.get("TARGETS", ""))), int(os.environ.get("METRICS_PORT") or PORT))
