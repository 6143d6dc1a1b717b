"""How Sphinx builds these pages: ``sphinx-build -W docs OUT``. The notebook is run each time, and must not fail."""

from evalkit import __version__

project = "evalkit"
author = "The evalkit maintainers"
copyright = "2026, the evalkit maintainers"
release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["pictures.py", "reference.py"]

html_theme = "sphinx_book_theme"
html_theme_options = {"navbar_persistent": []}
html_title = "evalkit"
html_show_sourcelink = False

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # what libraries say about missing progress bars

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
