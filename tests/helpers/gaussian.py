"""Gaussian pixels N(mu, s²): the one data set for which the best denoiser, and with it every sampler, is known exactly.

`GaussianDenoiser` is that denoiser as a network of the policy's contract; `reference_sample` is the whole sampler again
in float64 numpy, from the papers' own forms of the equations. None of dp's code is used, so that the two agree only if
both are right.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

DEFAULTS = {
    "linear": {"clip_min": 1e-9},
    "cosine": {"start": 0.0, "end": 1.0, "tau": 1.0, "clip_min": 1e-9},
    "sigmoid": {"start": -3.0, "end": 3.0, "tau": 1.0, "clip_min": 1e-9},
}


def reference_gamma(name: str, kwargs: dict, t) -> np.ndarray:
    """gamma(t) as SPEC writes it, in float64."""
    t, k = np.asarray(t, dtype=np.float64), DEFAULTS[name] | kwargs
    if name == "linear":
        return np.clip(1 - t, k["clip_min"], 1)
    curve = {
        "cosine": lambda u: np.maximum(np.cos(u * np.pi / 2), 0) ** (2 * k["tau"]),
        "sigmoid": lambda u: 1 / (1 + np.exp(-u / k["tau"])),
    }[name]
    v_start, v_end = curve(k["start"]), curve(k["end"])
    return np.clip((v_end - curve(t * (k["end"] - k["start"]) + k["start"])) / (v_end - v_start), k["clip_min"], 1)


def best_predictions(x_t, alpha, sigma, mu, s) -> dict:
    """The mean of x0, eps and v given x_t = alpha x0 + sigma eps, for x0 ~ N(mu, s²)."""
    residual = (x_t - alpha * mu) / (alpha**2 * s**2 + sigma**2)
    x0, eps = mu + alpha * s**2 * residual, sigma * residual
    return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}


class GaussianDenoiser(nn.Module):
    """The best network for pixels N(mu, s²), with no parameters and no latents, at the levels of the schedule that it
    was `trained` with.

    mu: a number, or an array [C,H,W]; with s = 0 the data set is one image and the predictions are perfect. With
    scale < 1 the network is fed x_t over its own standard deviation over c, h, w, which is undone by the deviation
    expected of such an image: exact but for the finite number of pixels. shape: of a sample, (C, L) for sequences; by
    default that of an image.
    """

    def __init__(
        self, mu, s, *, objective="v", trained=("sigmoid", {}), scale=1.0, channels=1, image_size=8, shape=None
    ):
        super().__init__()
        self.mu, self.s = mu, s
        self.objective, self.trained, self.scale = objective, trained, scale
        self.channels, self.image_size = channels, image_size
        self.sample_shape = shape or (channels, image_size, image_size)

    def level(self, gamma):
        return self.scale * np.sqrt(gamma), np.sqrt(1 - gamma)

    def predict(self, x, alpha, sigma):
        """From what the network is fed, tensors or arrays alike."""
        x_t = x if self.scale == 1 else x * (alpha**2 * self.s**2 + sigma**2) ** 0.5
        return best_predictions(x_t, alpha, sigma, self.mu, self.s)[self.objective]

    def forward(self, x, time, x_self_cond=None, latents=None, return_latents=False):
        gamma = reference_gamma(*self.trained, time.cpu().numpy())
        alpha, sigma = (torch.from_numpy(v).to(x)[(..., *[None] * (x.ndim - 1))] for v in self.level(gamma))
        prediction = self.predict(x, alpha, sigma)
        return (prediction, x.new_zeros(len(x), 0, 1)) if return_latents else prediction

    def reference_x0(self, x_t: np.ndarray, gamma: float) -> np.ndarray:
        """The clamped x0 at the level of `gamma`, or of the trained schedule's clip where that is higher."""
        clip_min = (DEFAULTS[self.trained[0]] | self.trained[1])["clip_min"]
        alpha, sigma = self.level(max(gamma, clip_min))
        deviation = x_t.std(axis=tuple(range(1, x_t.ndim)), keepdims=True)
        prediction = self.predict(x_t if self.scale == 1 else x_t / np.maximum(deviation, 1e-5), alpha, sigma)
        # Each objective is one more linear equation in (x0, eps), beside x_t = alpha x0 + sigma eps.
        second = {"x0": (1, 0), "eps": (0, 1), "v": (-sigma, alpha)}[self.objective]
        x0, _ = np.linalg.solve([(alpha, sigma), second], [x_t.ravel(), prediction.ravel()])
        return np.clip(x0.reshape(x_t.shape), -1, 1)


def reference_noise(seed: int, b: int, *shape: int) -> Callable[[], np.ndarray]:
    """A function that draws [b,*shape], image i from its own stream of seed + i."""
    streams = [torch.Generator().manual_seed(seed + i) for i in range(b)]
    return lambda: torch.stack([torch.randn(shape, generator=g) for g in streams]).double().numpy()


def reference_sample(
    net: GaussianDenoiser,
    draw: Callable[[], np.ndarray],
    *,
    sampler: str,
    timesteps: int,
    schedule: tuple[str, dict],
    time_difference: float = 0.0,
    eta: float = 0.0,
) -> np.ndarray:
    """The last x0 of a run."""
    x_t, before, x0 = draw(), None, None
    for k in range(timesteps):
        t, s = 1 - k / timesteps, max(1 - (k + 1) / timesteps - time_difference, 0)
        s = 0.0 if s < 1e-12 else s  # 1 - 3 / 3 and the like, but for their rounding
        gamma_t, gamma_s = reference_gamma(*schedule, t), reference_gamma(*schedule, s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = net.level(gamma_t), net.level(gamma_s)
        x0 = net.reference_x0(x_t, gamma_t)

        # The posterior q(x_s | x_t, x0): Kingma et al. 2021, eq. 32-33.
        alpha_ts = alpha_t / alpha_s
        sigma2_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
        posterior = sigma2_ts * sigma_s**2 / sigma_t**2
        if sampler == "ddpm":
            mean = (alpha_ts * sigma_s**2 * x_t + alpha_s * sigma2_ts * x0) / sigma_t**2
            x_t = mean + (np.sqrt(posterior) * draw() if s > 0 else 0)
        elif sampler == "ddim":  # Song et al. 2021, eq. 12 and 16
            eps, spread = (x_t - alpha_t * x0) / sigma_t, eta * np.sqrt(posterior)
            x_t = alpha_s * x0 + np.sqrt(sigma_s**2 - spread**2) * eps + (spread * draw() if eta and s > 0 else 0)
        elif sampler == "dpmpp_2m_sde":  # the update of k-diffusion's sample_dpmpp_2m_sde at eta 1, with alphas
            lambda_t = np.log(alpha_t / sigma_t)
            if s > 0:
                h = np.log(alpha_s / sigma_s) - lambda_t
                x_t = sigma_s / sigma_t * np.exp(-h) * x_t - alpha_s * np.expm1(-2 * h) * x0
                if before is not None:
                    r = (lambda_t - before[1]) / h
                    x_t += 0.5 * alpha_s * -np.expm1(-2 * h) / r * (x0 - before[0])
                x_t = x_t + sigma_s * np.sqrt(-np.expm1(-2 * h)) * draw()
            else:
                x_t = alpha_s * x0
            before = x0, lambda_t
        else:  # Lu et al. 2022b, Algorithm 2
            d, lambda_t = x0, np.log(alpha_t / sigma_t)
            if s > 0:
                h = np.log(alpha_s / sigma_s) - lambda_t
                if before is not None:
                    r = (lambda_t - before[1]) / h
                    d = (1 + 1 / (2 * r)) * x0 - before[0] / (2 * r)
                x_t = sigma_s / sigma_t * x_t - alpha_s * np.expm1(-h) * d
            else:
                x_t = alpha_s * x0
            before = x0, lambda_t
    return x0
