"""One HTML file with everything: opens from disk, asks nothing of any network, and runs nothing but its own script."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.report.analysis import Analysis
from evalkit.report.cells import Table, task_title
from evalkit.report.drawing import Drawing
from evalkit.report.inline import inline_svg
from evalkit.report.provenance import digest
from evalkit.report.render import csv_text
from evalkit.report.samples import Samples
from evalkit.report.words import findings

_TEMPLATES = Path(__file__).with_name("templates")
_SCRIPTS = ("tables.js", "figures.js", "samples.js")


def render_page(
    analysis: Analysis,
    tables: Sequence[Table],
    figures: Sequence[tuple[Drawing, bytes, bytes]],
    samples: Samples,
    origin: Mapping[str, Any],
) -> str:
    """Return the page.

    All text goes through the template's escaping or, in the browser, into text nodes; samples come as base64. The
    content-security policy lets nothing run or apply but this file's own script and style, by their hashes.

    Args:
        figures: each drawing with its SVG and its PDF.
        origin: from ``provenance``.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = "".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    arms = [arm.name for arm in analysis.arms if arm.runs]
    return environment.get_template("report.html").render(
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        title=f"{' and '.join(map(task_title, analysis.tasks))}: {_count(len(arms), 'arm')} compared",
        subtitle=" · ".join([_count(len(analysis.loaded.runs), "run"), *arms[:12], *(["…"] if len(arms) > 12 else [])]),
        findings=findings(analysis),
        notes=[*analysis.notes, *samples.notes],
        figures=[_figure(*figure) for figure in figures],
        all_arms=[arm.name for arm in analysis.arms],
        tables=tables,
        origin=origin,
        digest=f"Runs {digest(dict(origin))}",
        index=Markup(json_in_html(samples.index)),
        slices=samples.slices,
    )


def _figure(drawing: Drawing, svg: bytes, pdf: bytes) -> dict[str, Any]:
    """What the template shows of a figure; one with lines can be put into the page."""
    shown = inline_svg(svg, drawing.name)
    columns = list(dict.fromkeys(name for row in drawing.points for name in row))
    return {
        "name": drawing.name,
        "title": drawing.title,
        "description": drawing.description,
        "svg": _base64(shown),
        "pdf": _base64(pdf),
        "csv": _base64(csv_text(columns, drawing.points).encode()),
        "kind": "lines" if b'data-part="line"' in shown else "heat" if b"<image" in shown else "",
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def json_in_html(value: Any) -> str:
    """Return JSON that cannot end the element it stands in, nor be read as markup."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII, so no line separators either
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(content: str) -> str:
    return f"sha256-{_base64(hashlib.sha256(content.encode()).digest())}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
