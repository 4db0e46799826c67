"""Pages from templates, and pages that need nothing but themselves: charts, style and content policy in one file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def templates(package: str) -> Environment:
    """The templates of a package; those of this one, ``base.html`` among them, besides."""

    def text(name: str) -> str | None:
        for folder in dict.fromkeys((package, __package__)):
            file = files(folder).joinpath(name)
            if file.is_file():
                return file.read_text("utf-8")
        return None

    return Environment(
        loader=FunctionLoader(text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def document(template: str, plots: Mapping[str, Any], context: Mapping[str, Any], scripts: Sequence[str] = ()) -> bytes:
    """A self-contained page.

    Args:
        template: name of one that extends ``document.html``; it finds the chart of a name in ``divisions``.
        plots: Bokeh's models by name.
        context: what else the template needs, ``title`` among it.
        scripts: files of this package that the page runs once its charts are there.
    """
    script, divisions = components(dict(plots)) if plots else ("", {})
    code = re.sub(r"^\s*<script[^>]*>|</script>\s*$", "", script.strip())
    library = "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw) if plots else ""
    own = "\n".join(files(__package__).joinpath(name).read_text("utf-8") for name in scripts)
    page = templates(__package__).get_template(template)
    return page.render(
        **context,
        style=Markup(files(__package__).joinpath("style.css").read_text("utf-8")),
        divisions={name: Markup(division) for name, division in divisions.items()},
        library=Markup(library),
        code=Markup(code),
        own=Markup(own),
        script_hashes=" ".join(_hash(text) for text in (library, code, own)),
    ).encode()


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
