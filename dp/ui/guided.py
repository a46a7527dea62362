"""The guided questions: put the settings of the one that was asked into the controls of its tab."""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr

from dp.ui.components.guide.guide import READY, Guide
from dp.ui.questions import Question
from dp.ui.sampling.panel import QUIET, Updates
from dp.ui.tabs import compare, denoise


def wire(guide: Guide, questions: Mapping[str, Question], denoising: denoise.Tab, comparison: compare.Tab) -> None:
    def ask(event: gr.EventData) -> Updates:
        question = questions.get(str(event.question))
        if question is None:  # no question of this page
            return {}
        if question.tab == "Compare":
            return comparison.apply_settings(question.settings, question.axis, question.values)
        return denoising.apply_settings(question.settings)

    outputs = [denoising.start_image, denoising.walk_to, *denoising.panel.outputs]
    outputs += [comparison.axis, comparison.chosen, *comparison.panel.outputs]
    guide.ask(ask, None, outputs, **QUIET).success(None, None, js=READY, **QUIET)
