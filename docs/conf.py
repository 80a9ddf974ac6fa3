"""How Sphinx makes the site: ``sphinx-build -W -b html docs site``. Needs ``asyncrevoke[docs]``."""

project = "asyncrevoke"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
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
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}

# The site must build without a network: `sphinx-build -b linkcheck` looks at files and anchors, and asks no other host.
linkcheck_ignore = [r"https?://"]
