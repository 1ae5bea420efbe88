"""Sphinx: the pages are Markdown as they stand in the repository. Built by ``tools/docs.sh``, without warnings."""

project = "shovey-trio"
author = "The shovey-trio developers"
project_copyright = "2026, The shovey-trio developers"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "shovey-trio"
exclude_patterns = ["_build"]
myst_heading_anchors = 4
# Nothing is fetched while building, and nothing by the reader's browser.
html_theme_options = {"source_repository": "", "top_of_page_buttons": []}
