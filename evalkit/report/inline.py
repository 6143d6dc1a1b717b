"""A figure as the page shows it: parts that a script can point at, and nothing that the page's policy forbids."""

import re
from xml.etree import ElementTree

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_PART = re.compile(r"(?s)(?P<panel>.*)\.arm-(?P<arm>\d+)\.(?P<part>line|band|leader|name)")
"""See ``drawing.part_id``."""
_DARK = """@media (prefers-color-scheme: dark) {
  svg { fill: #ececf0; }
  [id$=".patch_1"] > path { fill: #16171a; }
  [stroke="#000000"] { stroke: #a5a6ae; }
}"""
"""Of a figure with an image, whose colours mean something: only the paper is dark, and what stands on it light."""


def inline_svg(svg: bytes, name: str) -> bytes:
    """Return an SVG that can stand in the page among others.

    A style in an element would need 'unsafe-inline', so styles become attributes, which mean the same. Ids begin with
    ``name``; parts of arms have ``data-panel``, ``data-arm`` (its place among the arms) and ``data-part`` instead.
    A heat map follows the reader's colour scheme by itself, as an image.

    Args:
        svg: as Matplotlib writes it.
        name: of the figure.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for unwanted in ("metadata", "style"):  # provenance, which the page has; a style sheet
            for child in parent.findall(f"{{{_SVG}}}{unwanted}"):
                parent.remove(child)
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}  # what the style sheet says
    for element in root.iter():
        for entry in filter(None, element.attrib.pop("style", "").split(";")):
            key, _, value = entry.partition(":")
            element.set(key.strip(), value.strip())
        for key, value in element.attrib.items():
            if value.startswith("url(#"):
                element.set(key, value.replace("#", f"#{name}.", 1))
        if link := element.get(f"{{{_LINK}}}href", ""):
            element.set(f"{{{_LINK}}}href", re.sub("^#", f"#{name}.", link))
        if own := element.attrib.pop("id", None):
            found = _PART.fullmatch(own)
            element.attrib |= (
                {f"data-{k}": v for k, v in found.groupdict().items()} if found else {"id": f"{name}.{own}"}
            )
    if root.find(f".//{{{_SVG}}}image") is not None:
        ElementTree.SubElement(root, f"{{{_SVG}}}style").text = _DARK
    return ElementTree.tostring(root)
