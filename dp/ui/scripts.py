"""Scripts that run in the browser on an event of the page, outside the components. Each is one JavaScript function."""

from __future__ import annotations

import json

from dp.ui import words
from dp.ui.components.component import read_file
from dp.ui.sampling.links import NAMES

REMEMBERED_RUN = read_file("page/remembered_run.js").replace("LINK_NAMES", json.dumps(list(NAMES)))
REMEMBERED_SETTINGS = read_file("page/remembered_settings.js").replace("REMEMBERED_RUN", f"({REMEMBERED_RUN})")
REMEMBERED_COMPARISON = read_file("page/remembered_comparison.js")
SHOW_OPENED = read_file("page/show_opened.js")
OPEN_LINK = read_file("page/open_link.js")
NAME_CONTROLS = read_file("page/name_controls.js")
DEFINE_TERMS = read_file("page/define_terms.js").replace("DEFINITIONS", json.dumps(words.TERMS))
NOTE_LIMITS = read_file("page/note_limits.js")
RUN_BUTTONS = read_file("page/run_buttons.js")
TRUNCATE_PNG = read_file("page/truncate_png.js")
ON_LOAD = (NAME_CONTROLS, DEFINE_TERMS, NOTE_LIMITS, RUN_BUTTONS, TRUNCATE_PNG)
COPY_LINK = read_file("page/copy_link.js")
RESET_SETTING = read_file("page/reset_setting.js")
DESCRIBE_CHANGES, BEGIN_RUN = (
    f"(...values) => ({read_file('page/describe_changes.js')})({is_drawn}, ...values)" for is_drawn in ("false", "true")
)

# Shown by COPY_LINK if the browser does not allow the page to copy. In a cross-site frame it blocks `prompt`, too.
LINK_FIELD = (
    "<label hidden>The browser does not allow this page to copy. Copy the link by hand: "
    '<input readonly spellcheck="false" style="width: 100%" /></label>'
)
