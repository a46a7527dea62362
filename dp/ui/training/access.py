"""Refuse visitors who may not train."""

from __future__ import annotations

import gradio as gr

from dp.ui.auth import permission
from dp.ui.sampling import page_values


def check_permission(request: gr.Request) -> None:
    """Raise gr.Error if the visitor may not train."""
    if reason := permission.denial_reason(request):
        raise page_values.user_error(reason)
