"""The long texts of the page, each a Markdown file in `help/`. Short texts are next to their controls in the code."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

HELP = Path(__file__).with_name("help")
LATEX = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]


def help_text(name: str) -> str:
    """Return the text of `help/<name>.md`."""
    return (HELP / f"{name}.md").read_text(encoding="utf-8")


INTRO = help_text("intro")
DENOISE = help_text("denoise")
START = help_text("start_image")
WALK = help_text("walk")
LOAD = help_text("hub_model")
LOAD_IN_PUBLIC = help_text("hub_model_public")
COMPARE_HINT = help_text("compare_hint")
COMPARE = help_text("compare")
PLANE = help_text("plane")
TRAIN = help_text("train")
EQUATIONS = help_text("equations")
TERMS = {  # the definitions that the page shows where the pointer rests on a word
    "seed": "Seed: the number that the noise is made from. The same seed and settings give the same images.",
    "x0": "x₀: the finished image. During a run, the model's prediction of it.",
    "log-snr": "Log-SNR: signal versus noise. At 0, both are equally strong; below 0, the noise is stronger.",
    "eta": "eta: how much of the noise DDIM replaces with new noise at each step. 0: none. 1: as much as DDPM.",
    "ema": "EMA: an average of the network's weights over its latest training steps. It draws better images.",
    "rms": "RMS: root mean square, an average in which large differences count more. Black to white is 1.",
    "block": "Block: one round of reading the image into the latents and writing back. The network has a few.",
    "latent": "Latent: one of the few dozen vectors through which the network reads and changes the image.",
}
EXACT = (  # about an exact model
    "No network: the best possible prediction for the {count} training images, computed in closed form. It has nothing "
    "to learn, and draws only copies."
)
BROWSER_RUNS = (  # where the page may compute runs itself
    "Your browser fetches the model once, and waits for nobody. Only the server's runs can be looked into and saved as "
    "GIF or MP4."
)
NO_BROWSER_RUNS = (
    "Your browser cannot be chosen: this server lacks {packages}. Its owner can install requirements-web.txt."
)
PREDICTIONS = {  # by objective
    "v": "Trained to predict v, a mixture of noise and image, from which the finished image (x₀) follows.",
    "x0": "Trained to predict the finished image (x₀).",
    "eps": "Trained to predict the noise (ε), from which the finished image (x₀) follows.",
}


def explain(text: str, equations: str | None = None) -> None:
    """Add the help sections of a tab to the page being built."""
    with gr.Accordion("What am I looking at?", elem_classes="explain"):
        gr.Markdown(text)
    if equations:
        with gr.Accordion("The equations", open=False, elem_classes="explain"):
            gr.Markdown(equations, latex_delimiters=LATEX)
