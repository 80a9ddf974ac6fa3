"""How Sphinx makes the site: ``sphinx-build -W -b html docs site``. Needs ``asyncrevoke[docs]``."""

import pathlib
import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

project = "asyncrevoke"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["**/README.md"]

html_theme = "furo"
html_title = "asyncrevoke"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]

myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

default_role = "py:obj"  # docstrings name what they mean in single backticks
add_module_names = False
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
autodoc_mock_imports = ["pyfuse3"]  # which is built on installation, of C
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}

# The site must build without a network: `sphinx-build -b linkcheck` looks at files and anchors, and asks no other host.
linkcheck_ignore = [r"https?://"]

_NOTES = re.compile(r"^(Cancellation|Deadlock): ")


def _fields(_app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Make fields of what docstrings say about cancellation and deadlocks, and paragraphs of what else follows a field."""
    told: list[str] = []
    above = ""  # what goes on until a line is empty: "text", "field" or "note"
    for line in lines:
        note = _NOTES.sub(r":\1: ", line)
        if not line:
            above = ""
        elif note[0] == ":":
            told += [""] if above == "text" else []
            above = "field" if note == line else "note"
        elif line[0] != " " and above == "field":
            told.append("")
            above = "text"
        elif above == "note":
            note = f"    {line.lstrip()}"
        else:
            above = above or "text"
        names, colon, text = note.partition(": ")
        told.append(names.replace(", ", ",") + colon + text if names.startswith(":param ") else note)
    lines[:] = told


def _outside(app: Sphinx, doctree: nodes.document) -> None:
    """Name what a page links to in the repository and the site has no page for: a folder, or a page beside the docs."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link["reftype"] != "myst":
            continue
        target = pathlib.Path(app.srcdir, link["refdoc"]).parent / link["reftarget"]
        known = target.is_dir() or pathlib.Path(f"{target}.md").is_file()
        if known and not target.resolve().is_relative_to(app.srcdir):
            link.replace_self(link.children)


def setup(app: Sphinx) -> None:
    """Have docstrings and links read as they are written here."""
    app.connect("autodoc-process-docstring", _fields)
    app.connect("doctree-read", _outside)
