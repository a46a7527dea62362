"""dp: a small library for diffusion models that can be watched. The public names are handed out lazily, so that `import
dp.training.run_folder` loads no torch.
"""

from importlib import import_module

_HOMES = {
    "DiffusionPolicy": "diffusion.policy",
    "Engine": "serving.engine",
    "ExactDenoiser": "diffusion.exact",
    "ImageDataset": "data.dataset",
    "RIN": "networks.rin",
    "SampleSettings": "diffusion.settings",
    "Step": "diffusion.state",
    "Trainer": "training.trainer",
    "prepare": "data.prepare",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'dp' has no attribute {name!r}")
    return getattr(import_module(f"dp.{_HOMES[name]}"), name)


def __dir__():
    return __all__
