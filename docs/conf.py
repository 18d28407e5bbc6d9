"""How ``make docs`` builds these pages: Markdown, and a reference from the docstrings."""

import ltm_mm  # isort: skip  (before mmdet and mmseg)

project = "ltm_mm"
author = "The ltm_mm contributors"
release = ltm_mm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["figures"]
html_theme = "furo"
html_title = f"ltm_mm {release}"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
