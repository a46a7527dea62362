"""Conditions: what a sample is to be like, a class or an observation. Zeros mean none.

A class is a whole number from 1 to `num_classes`; the condition of B samples is [B] int64. An observation is a set of
at most O tokens of F features, [B,O,F]. Feature 0 of a present token is 1; an absent one is all zeros, and the order of
the tokens has no meaning. A network has classes, or observations of one shape (O, F), or neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dp.system.validation import quote

Observation = tuple  # nested tuples of numbers, [O,F] or [B,O,F]


def is_given(condition: Tensor) -> Tensor:
    """Return whether each sample has a condition, [B] bool."""
    return (condition != 0)[..., None].flatten(1).any(dim=1)


def without(condition: Tensor, rows: Tensor) -> Tensor:
    """Return the condition, with none for the samples of `rows` [B] bool."""
    rows = rows.to(condition.device)
    return condition.masked_fill(rows[(..., *[None] * (condition.ndim - 1))], 0)


def parse_observation(given: Any, count: int) -> Observation:
    """Return an observation, [O,F] for all of `count` samples or [count,O,F], as nested tuples. It may be a tensor, an
    array or nested lists. Raises ValueError, with the value, unless it is one.
    """
    try:
        values = torch.as_tensor(given, dtype=torch.float64)  # keeps the numbers as they were written
    except (TypeError, ValueError, RuntimeError, OverflowError):
        values = torch.empty(0)
    if values.ndim not in (2, 3) or not values.numel() or (values.ndim == 3 and len(values) != count):
        shape = f"numbers [O,F], or [{count},O,F] for {count} samples"
        found = f"shape {tuple(values.shape)}" if values.numel() else quote(given)
        raise ValueError(f"observation must be {shape}, got {found}")
    check_tokens(values.float())
    return _nested(values.tolist())


def has_tokens(observation: Observation | None) -> bool:
    """Return whether any sample is given a token."""
    return observation is not None and bool(torch.tensor(observation).any())


def observation_of(observation: Observation | None, row: int) -> Observation | None:
    """Return the observation [O,F] of one sample."""
    is_per_sample = observation is not None and isinstance(observation[0][0], tuple)
    return observation[row] if is_per_sample else observation


def no_observation(shape: Sequence[int]) -> Observation:
    """Return an observation of `shape` (O, F) without any token."""
    return _nested(torch.zeros(*shape).tolist())


def check_tokens(values: Tensor) -> None:
    """Raise ValueError unless each observation token [...,F] is finite and is present, with a 1 first, or all zeros."""
    is_valid = values.isfinite().all(dim=-1) & ((values[..., 0] == 1) | (values == 0).all(dim=-1))
    if not is_valid.all():
        token = values[~is_valid][0].tolist()
        rule = "finite numbers, of which the first is 1, or all zeros for no token"
        raise ValueError(f"a token of an observation must be {rule}; got {quote(token)}")


def check_observation(observation: Observation, shape: Sequence[int] | None) -> None:
    """Raise ValueError unless a network with observations of `shape` (O, F), None for no observations, takes this."""
    if shape is None:
        raise ValueError("this model takes no observation; leave it out")
    found = torch.tensor(observation).shape[-2:]
    if tuple(found) != tuple(shape):
        rule = f"this model takes {shape[0]} tokens of {shape[1]} features, zeros for those that are absent"
        raise ValueError(f"observation must be {tuple(shape)}, got {tuple(found)}: {rule}")


def check_condition(condition: Tensor, count: int, num_classes: int, shape: Sequence[int] | None) -> None:
    """Raise ValueError unless `condition` fits `count` training samples of a network with `num_classes` classes, or
    with observations of `shape`.
    """
    if shape is not None:
        if tuple(condition.shape) != (count, *shape) or not condition.is_floating_point():
            found = f"{condition.dtype} of shape {tuple(condition.shape)}"
            raise ValueError(f"condition must be floats of shape {(count, *shape)}, one row per sample, got {found}")
        check_tokens(condition)
        return
    if tuple(condition.shape) != (count,) or condition.is_floating_point():
        raise ValueError(f"condition must be {count} whole numbers, one per image, got {quote(condition)}")
    if count and not 0 <= int(condition.min()) <= int(condition.max()) <= num_classes:
        raise ValueError(f"condition must lie in 0 to {num_classes}, got {quote(condition.tolist())}")


def _nested(values: Any) -> Any:
    return tuple(map(_nested, values)) if isinstance(values, list) else values
