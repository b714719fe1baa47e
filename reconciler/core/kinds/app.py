"""App: an entry of the catalog; what it runs is in its versions."""

from __future__ import annotations

from typing import Literal

from reconciler.core.kinds.base import Label, Manifest, Name, Part, Text


class AppUi(Part):
    icon: Label | None = None
    category: Label | None = None


class AppSpec(Part):
    slug: Name
    display_name: Label
    owner: Label
    description: Text = ""
    ui: AppUi | None = None


class App(Manifest):
    kind: Literal["App"]
    spec: AppSpec
