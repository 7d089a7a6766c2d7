"""How the documentation site is built: `make docs`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "extensions"))

import mlperf_jax
from mlperf_jax.results.result import NOTICE

project = "mlperf_jax"
author = "The mlperf_jax authors"
version = release = mlperf_jax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "dead_links",
    "docstrings",
    "generated",
    "repository",
]
exclude_patterns = ["_build", "extensions"]
root_doc = "index"
highlight_language = "none"  # of a block that names none: a command, what a program said

# -- Markdown ------------------------------------------------------------------------------------

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # notebooks begin at any level

# -- docstrings ----------------------------------------------------------------------------------

default_role = "code_or_name"
autodoc_default_options = {"special-members": "__call__, __getitem__"}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
nitpicky = True
# names of other libraries have no page here, and no other host is asked where theirs are
nitpick_ignore_regex = [(r"py:.*", r"(?!mlperf_jax\.).*")]
# what only this library's own code makes or takes
nitpick_ignore = [
    ("py:class", f"mlperf_jax.{name}")
    for name in (
        "benchmarks.registry.B",
        "core.fields.NotEmpty",
        "core.state.Assembly",
        "input_pipelines.building.Job",
        "input_pipelines.dealing.Groups",
        "ops.row_store.Ids",
    )
]

# -- the look ------------------------------------------------------------------------------------

html_theme = "furo"
html_title = "mlperf_jax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
templates_path = ["templates"]
html_show_copyright = False
html_context = {"notice": NOTICE}
html_theme_options = {"top_of_page_buttons": []}
