"""The site: `sphinx-build -W --keep-going -b html docs build/site`, without a network."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "anytime"
copyright = "the developers of anytime"
release = version = installed("anytime-nets")

extensions = [
    "brought",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
default_role = "py:obj"  # a name in single backticks is a link where the site has a page of it
suppress_warnings = ["config.cache"]  # of functions
smartquotes = False  # --option is no dash

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_typehints = "none"  # the signature has them
autodoc_inherit_docstrings = False  # of Lightning and torch
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autosummary_generate = True
autosummary_ignore_module_all = False  # what a module offers is its __all__
autosummary_imported_members = True
autosummary_filename_map = {"anytime.profile": "anytime.profile-function"}  # beside anytime.Profile where case is ignored

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "plot_gallery": False,  # docs/images/examples holds what they printed and drew on a quiet machine
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 1e9,
    "copyfile_regex": r".*\.rst",
}

html_theme = "pydata_sphinx_theme"
html_title = "anytime"
html_static_path = ["_static", "../src/anytime/reporting/style/colours.css"]  # the colours of reports and of the live page
html_css_files = ["colours.css", "site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "collapse_navigation": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
