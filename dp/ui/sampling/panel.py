"""The sampling controls, as every tab that samples shows them, and how values from outside are put into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from dp.serving.engine import Engine
from dp.system.validation import MAX_SEED
from dp.ui.sampling import page_values


class Panel:
    """Adds the controls to the page being built. `settings` are those of `controls.read`, in its order; `everything` is
    what `look_again` and `restored` give values for, `chosen` what `opened` does. prefix: of the controls' ids, so that
    two panels can stand on one page. fold: adds what stands under the checkpoint, and is kept as `folded`.
    """

    def __init__(
        self, engine: Engine, prefix: str = "", images: int = page_values.IMAGES, fold: Callable[[], Any] = lambda: None
    ):
        self.engine = engine
        names = page_values.usable_names(engine)
        default = names[0] if names else None
        checkpoint = gr.Dropdown(
            names,
            value=default,
            label="Checkpoint",
            elem_id=prefix + "checkpoint",
            info="The trained model to sample from.",
        )
        about = gr.Markdown(page_values.describe(engine, default), elem_classes="about")
        self.folded = fold()
        batch_size = gr.Slider(
            1,
            page_values.MAX_IMAGES,
            images,
            step=1,
            label="Images",
            elem_id=prefix + "images",
            info="More take longer; each has its own seed.",
        )
        timesteps = gr.Slider(
            1,
            page_values.MAX_TIMESTEPS,
            page_values.TIMESTEPS,
            step=1,
            label="Timesteps",
            elem_id=prefix + "timesteps",
            info="Network calls: fewer are faster and rougher. In our measurements 2M gained nothing beyond 20.",
        )
        sampler = gr.Radio(
            page_values.SAMPLERS,
            value=page_values.SAMPLER,
            label="Sampler",
            elem_id=prefix + "sampler",
            info="DDIM is deterministic, DDPM adds noise at each step; 2M and 2M SDE are their second-order forms.",
        )
        schedule = gr.Radio(
            page_values.schedule_choices(engine, default) if default else [],
            value=page_values.TRAINED,
            label="Noise schedule",
            elem_id=prefix + "schedule",
            info="Where the steps are spent on the way from noise to picture.",
        )
        difference = gr.Slider(
            0,
            page_values.MAX_TIME_DIFFERENCE_STEPS,
            0,
            step=0.5,
            label="Time difference, in steps",
            elem_id=prefix + "difference",
            info="Each step goes this much further than the next one starts from: 0 is the plain sampler.",
        )
        eta = gr.Slider(
            0,
            1,
            0,
            step=0.05,
            label="eta",
            elem_id=prefix + "eta",
            info="Fresh noise in each of DDIM's steps: 0 is none, 1 as much as DDPM adds.",
            visible=page_values.SAMPLER == "ddim",
        )
        with gr.Row(equal_height=True):
            seed = gr.Number(
                0,
                precision=0,
                minimum=0,
                maximum=MAX_SEED - 1,
                label="Seed",
                elem_id=prefix + "seed",
                info="Same seed, same pictures.",
                min_width=120,
            )
            random_seed = gr.Checkbox(
                True, label="Random seed", elem_id=prefix + "random", info="A new one each time.", min_width=120
            )
        self.checkpoint, self.schedule, self.seed = checkpoint, schedule, seed
        self.settings = [checkpoint, batch_size, timesteps, sampler, schedule, difference, eta, seed, random_seed]
        self.everything = [about, *self.settings]
        self.chosen = [checkpoint, about, schedule]
        for control in self.settings[:-1]:
            page_values.unchecked(control)

        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        checkpoint.input(self._choose, checkpoint, [about, schedule], **quiet)
        sampler.input(eta_of, sampler, eta, **quiet)

    def look_again(self, asked: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """The checkpoints that are there now, and the settings in `asked` (named as in `SampleSettings`, and checked)
        where there are any.
        """
        names = page_values.usable_names(self.engine)
        if names and asked:
            return self.restored(asked, choices=names)
        if self.checkpoint.value in names:  # a visitor who was quick may have chosen already
            values, name = (gr.update(choices=names), *(gr.skip(),) * 8), self.checkpoint.value
        else:
            name = names[0] if names else None
            values = gr.update(choices=names, value=name), *(gr.skip(),) * 3, self._schedules(name), *(gr.skip(),) * 4
        return self._about(name), *values

    def restored(self, made_with: Mapping[str, Any], **of_checkpoint: Any) -> tuple[Any, ...]:
        """Settings from outside where they belong; without a seed, the one that is there stays. Raises gr.Error."""
        values = page_values.restored(self.engine, made_with)
        name, images, timesteps, sampler, schedule, difference, eta, seed, is_random, *_ = values
        checkpoint, seed = gr.update(value=name, **of_checkpoint), gr.skip() if seed is None else seed
        shown = checkpoint, images, timesteps, sampler, self._schedules(name, schedule), difference
        return self._about(name), *shown, eta_of(sampler, eta), seed, is_random

    def opened(self, name: str) -> tuple[Any, ...]:
        """A checkpoint, chosen from elsewhere on the page: values for `chosen`."""
        names = page_values.usable_names(self.engine)
        return gr.update(choices=names, value=name), self._about(name), self._schedules(name)

    def listing(self) -> tuple[Any, ...]:
        """The checkpoints that are there now, and the same one chosen: values for `chosen`."""
        return gr.update(choices=page_values.usable_names(self.engine)), gr.skip(), gr.skip()

    def _choose(self, name: str | None) -> tuple[Any, ...]:
        return self._about(name), self._schedules(name)

    def _about(self, name: str | None) -> str:
        return page_values.describe(self.engine, name)

    def _schedules(self, name: str | None, value: str = page_values.TRAINED) -> Any:
        return gr.update(choices=page_values.schedule_choices(self.engine, name) if name else [], value=value)


def eta_of(sampler: str, value: float = 0.0) -> Any:
    """The other samplers have no such setting."""
    return gr.update(value=value, visible=sampler == "ddim")
