"""Builds the documentation: ``python -m sphinx -W --keep-going -b html docs docs/_build``."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.util import logging

import dicomslide

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

HERE = Path(__file__).parent
PUBLIC = ("dicomslide", "dicomslide.recipes", "dicomslide.testing", "dicomslide.openslide")
"""Modules all of whose names are in the reference."""

for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    shutil.copy2(notebook, HERE / "notebooks")  # Sphinx reads nothing from outside of its folder

project = "dicomslide"
author = "the dicomslide developers"
version = release = dicomslide.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute"]  # what the build itself writes
nitpicky = True
nitpick_ignore_regex = [
    # documented by others, to whom there are no links: pages are built without a network
    (r"py:.*", r"(?!dicomslide\b)([a-z]\w*|PIL)\..*"),
]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed with their outputs

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say them in words
numpydoc_show_class_members = False  # they follow, in full
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = f"dicomslide {version}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sourcelink = False
html_sidebars = {"start": [], "changelog": [], "stability": []}  # they have no pages beside them
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
}


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that are not in the reference: with ``-W``, the build fails."""
    there = env.domaindata["py"]["objects"]
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            if not {f"{module}.{name}", f"dicomslide.{name}"} & {*there, "dicomslide.__version__"}:
                logging.getLogger(__name__).warning("%s.%s isn't in the reference", module, name)


def setup(app: Sphinx) -> None:
    """Connect what this file adds."""
    app.connect("env-check-consistency", check_reference)
