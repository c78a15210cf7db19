"""Settings of Sphinx: python -m sphinx -W -b html docs docs/_build/html"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sphinx.domains.python import PyObject

import pooling

project = "pooling"
author = "pooling contributors"
project_copyright = "pooling contributors"
version = release = pooling.__version__
exclude_patterns = ["_build"]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "py:obj"  # `Pool` in a docstring is a link where there is a target, else the name
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"pooling {release}"
html_static_path = ["_static"]
html_css_files = ["pooling.css"]
html_show_sphinx = False
smartquotes_action = "qe"  # no dashes: options begin with two
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

_SEVERAL = re.compile(r"( +[a-z]\w*(?:, [a-z]\w*)+):(?: |$)")


def _join_names(app, what, name, obj, options, lines):
    """Write "a, b: ..." in a docstring as "a,b: ...": Sphinx takes what stands before a space for a type."""
    for number, line in enumerate(lines):
        if found := _SEVERAL.match(line):
            lines[number] = found[1].replace(", ", ",") + line[found.end(1) :]


def setup(app):
    app.connect("autodoc-process-docstring", _join_names, priority=400)  # before napoleon


for _field in PyObject.doc_field_types:
    if _field.name == "variable":  # an attribute in a docstring; as a link it would lead to another class's
        _field.rolename = ""
        _field.label = "Attributes"
