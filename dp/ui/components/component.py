"""The base class of the page's custom components: a `gr.HTML` that is made of the files of a folder beside this one.

A component's JavaScript is one function body, put together from several files. Most of them define a function
`create…`, which adds the behavior of one part of the component and gets everything that it needs as arguments; files in
`shared/` define helpers. The component's own file comes last and calls them. In it, Gradio defines `element`, `props`,
`server`, `trigger` and `watch`, and so does an exported page (`dp.ui.web`), which has no Gradio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from dp.ui.components.files import read_file


class Component(gr.HTML):
    """html, css, js: names of files, relative to this folder. without: files that are left out of the HTML.
    description: of the value, for the API's users.
    """

    def __init__(
        self,
        html: str,
        css: Sequence[str],
        js: Sequence[str],
        description: str,
        without: Sequence[str] = (),
        **kwargs: Any,
    ):
        self.description = description
        super().__init__(
            html_template=read_file(html, tuple(without)),
            css_template="".join(map(read_file, css)),
            js_on_load="\n".join(map(read_file, js)),
            apply_default_css=False,
            **kwargs,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "description": self.description}
