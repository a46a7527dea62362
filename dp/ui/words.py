"""What a tab shows, told to someone who is new to it; the equations come last, in a fold of their own."""

from __future__ import annotations

import gradio as gr

DENOISE = """
**Left: what the network is given.** At first it is nothing but noise; step by step there is more picture in it.
**Right: the finished picture that the network guesses from it.** The first guesses are vague, an average of all
that the
noise could still become. Each step takes a little of the guess over into the picture on the left, and so the next
guess
has more to go by.

- **Look back.** Drag the slider below the pictures, or use the arrow keys. The whole run stays here; space plays it
  again.
- **Look closer.** Click on a picture to see it alone, with ten moments of its run below.
- **Look inside.** Beside the strip of a single picture. The network reads it with a few dozen *latents*; what
  one of them reads stays bright while the rest grows dark. Move through the run to see it change.
- **log-SNR** says how much picture there is in the noise: below the thin line at 0 there is more noise than
  picture, above
  it more picture. A noise schedule is the shape of this curve, which is where the steps are spent.
- **motion** says how far the guess moves at each step. Where it is high, something is decided: what it will be at
  first,
  the details later. Where it is flat, steps could be saved.
- **Try this.** Keep the seed (untick *Random seed*) and change one thing: 5 steps instead of 20, or DDPM instead
  of DDIM.
  With the same seed the noise is the same, so what differs comes from what you changed.
"""
START = """
The run then sets out from your picture under noise instead of from noise alone. The less noise, the more of it is
left; what you paint green stays as it is, and the rest is made to fit.
"""
WALK = """
The images become a walk from the seed above to this one, in equal steps round the sphere on which noise lives. Empty:
no walk. Watch how far apart two pictures lie, and where one turns into the other.
"""
LOAD = """
Choose a model made with this library on the Hugging Face Hub, or type its name there, user/name. Its files go to this
machine's cache; nothing of it is run. Your private models need this machine's login (`hf auth login`) and a browser
that opened the address with `?key=` that the app printed.
"""
LOAD_IN_PUBLIC = """
Choose a model made with this library on the Hugging Face Hub, or type its name there, user/name. Everybody who comes to
this page can then choose it, too; when there are many, the one that has not been used for longest goes.
"""
COMPARE_HINT = """
Choose what differs, press Compare, and watch up to six runs start from the very same noise.
"""
COMPARE = """
**Every run starts from the same noise**, so whatever differs between them comes from the one thing that you have
chosen. They are computed together, and one clock plays them all.

- **Aligned by share of the steps**: half of 10 steps stands beside half of 100. **By log-SNR**: all stand where there
  is equally much picture in the noise. Schedules that look different by the one may look alike by the other.
- **Try this.** *Step k of a long run, and a k-step run.* Step 20 of 40 is a guess from a picture that is still noisy;
  a run of 20 steps has been all the way. It is not the same network call, and not the same picture.
- **Try this.** *Timesteps*, with the distance in the table: how few steps come close to the longest run? Then again
  with another sampler.
- **Click on a picture** to see it alone in every run; again, or Escape on the clock, shows all.
- **Distance** is the root mean square difference between the last pictures and the longest run's, with the distance
  from black to white as 1. **Seconds** are until the end of the run, all of them sharing this machine.
"""
TRAIN = """
**Training** shows the network your pictures under noise, again and again, and each time nudges it so that its guess of
the picture beneath comes a little nearer. At first it draws grey; then colours, then shapes, then pictures.

- **Upload** an archive (zip or tar), a folder or files. Each picture is turned upright, cropped to a square from its
  middle and made small; that is what you see before you start, and all that is kept. Files that are no pictures are
  named with the reason.
- **The times** are measured: ten steps of each choice are trained on this machine. If something else runs on it, they
  take longer.
- **The loss** says how far off the guesses are: faint, each measurement; strong, their running mean. It falls quickly,
  then slowly; the samples go on getting better long after it looks flat. *By noise level* splits it up: nearly pure
  noise is where it is decided what a picture will be, little noise where the details are.
- **The samples** of each row come from the same seeds, so you see the same pictures grow. They are drawn with a running
  average of the network (EMA), which is steadier than the network itself.
- **Pause** saves and frees the machine for other things; **Resume** goes on as if nothing had been. **Stop** saves,
  too. Close the page, or the app: training continues. Runs are stored in `runs/` beside `app.py`, or in the folder
  that `DP_HOME` names.
- **Rent a machine** trains the run on a computer of Hugging Face, for money; what it costs at most is said before it
  starts. It is shown here all the same, and goes on with this page and this machine turned off.
- **Denoise** and **Compare** beside a row open its network there, while training goes on.
"""
EQUATIONS = r"""
Time $t$ runs from 1 (noise) to 0 (picture); a schedule turns it into the share of signal $\gamma(t)$.

$$x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon, \qquad \alpha_t = \sqrt{\gamma(t)}, \quad \sigma_t = \sqrt{1 -
\gamma(t)},
\qquad \text{log-SNR} = \log \frac{\alpha_t^2}{\sigma_t^2}$$

The network predicts $v = \alpha_t\, \varepsilon - \sigma_t\, x_0$, and so $\hat{x}_0 = \alpha_t\, x_t - \sigma_t\,
v$, the guess.
A step goes from $t$ to $s < t$:

- **DDIM** keeps the noise that it has found: $x_s = \alpha_s\, \hat{x}_0 + \sigma_s\, \hat\varepsilon$ with
  $\hat\varepsilon = (x_t - \alpha_t\, \hat{x}_0) / \sigma_t$.
  With **eta** above 0, a part of it is replaced by fresh noise.
- **DDPM** draws fresh noise for a part of it: $x_s \sim q(x_s \mid x_t, \hat{x}_0)$.
- **DPM-Solver++(2M)** steps like DDIM, towards $D = \hat{x}_0 + \tfrac{1}{2r}(\hat{x}_0 -
  \hat{x}_0^{\text{before}})$, where the
  guess seems to be going; $r$ compares this step's length in log-SNR with the last one's.
- **DPM-Solver++(2M) SDE** does the same on top of DDPM, and keeps its fresh noise.

A run that **starts from a picture** begins at $t$ = strength, with $x_t$ made of that picture by the first line above;
what is **kept** is put into every $\hat{x}_0$ before the step. A **walk** takes its noise from between two draws
$\varepsilon_a, \varepsilon_b$ at an angle $\theta$: $\varepsilon = (\sin((1 - u)\theta)\, \varepsilon_a +
\sin(u\theta)\, \varepsilon_b) / \sin\theta$, with $u$ from 0 to 1.

A **time difference** makes the step end a little later than the next one begins: $s$ becomes $\max(s - \delta, 0)$.

**motion** is the root mean square of $\hat{x}_0 - \hat{x}_0^{\text{before}}$, with the distance from black to white
as 1.
"""
LATEX = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]


def explain(words: str, equations: str | None = None) -> None:
    """Add the folds to the page being built."""
    with gr.Accordion("What am I looking at?", open=False, elem_classes="explain"):
        gr.Markdown(words)
    if equations:
        with gr.Accordion("The equations", open=False, elem_classes="explain"):
            gr.Markdown(equations, latex_delimiters=LATEX)
