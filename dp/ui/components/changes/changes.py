"""The settings that differ from their defaults, and those that changed since the run on the page.

The browser makes its value from the controls (`page/describe_changes.js`), and the server never does:

    chips     [name, words] of each setting that differs from its default
    changed   the labels of the controls that changed since that run
    drawn     the values of the controls when that run was started
    removed   the name of a setting to reset, when the component triggers `remove`
"""

from __future__ import annotations

from typing import Any

from dp.ui.components.component import Component


class Changes(Component):
    """fold: the element id of the section whose title says how many settings differ."""

    def __init__(self, fold: str, **kwargs: Any):
        super().__init__(
            html="changes/changes.html",
            css=["changes/changes.css"],
            js=["changes/changes.js"],
            description="the settings that differ from the defaults",
            value={},
            fold=fold,
            **kwargs,
        )
