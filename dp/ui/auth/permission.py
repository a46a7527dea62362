"""Who may train here, and why not. Whoever may not sees nothing of the runs either: their pictures, samples, files and
checkpoints are somebody's own.

    SPACE_ID            set by Hugging Face: the page is in public
    DP_ALLOW_TRAINING   1: the owner of that Space has turned training on
    DP_TRAINERS         names of users on Hugging Face, with commas between; without it everybody who reaches the page

Elsewhere training is on, for everybody who reaches the page. This machine's login on Hugging Face is for browsers that
hold the owner's cookie. The environment is read anew each time.
"""

from __future__ import annotations

import os
import time
from typing import Any

from gradio.context import LocalContext
from huggingface_hub import get_token

from dp.ui.auth.gateway import OWNER

ON_ZERO_GPU = (
    "**Training is not available here.** This Space runs on ZeroGPU, which provides a GPU for a few seconds per call, "
    "and training needs one for minutes. Denoise works here with all its settings. To train, run the app on your own "
    "machine or on a Space with dedicated hardware."
)
OFF = (
    "**Training is turned off here.** This is a public Space, and its owner has not turned training on: set "
    "`DP_ALLOW_TRAINING=1` in its settings, and list the users who may train in `DP_TRAINERS`. On your own machine, "
    "training is always on."
)
SIGN_IN = "**Training is limited to some users of this Space.** Sign in with Hugging Face to see whether you may."
OPEN_WITH_KEY = (
    "To use this machine's Hugging Face login instead, open the address with ?key= that the app printed at startup."
)
NOT_YOU = "**Training is limited to some users of this Space,** and {name} is not one of them. Its owner can add you."


def denial_reason(request: Any = None) -> str | None:
    """Why the visitor behind a request, Gradio's or the server's own, may not train, in Markdown; None where they may.
    request: by default that of the handler under way.
    """
    if on_zero_gpu():
        return ON_ZERO_GPU
    if not is_public():
        return None
    if os.environ.get("DP_ALLOW_TRAINING") != "1":
        return OFF
    names = trainers()
    if not names:
        return None
    user = user_of(request or LocalContext.request.get(None))
    if user is None:
        return SIGN_IN
    return None if user.lower() in names else NOT_YOU.format(name=user)


def is_public() -> bool:
    return bool(os.environ.get("SPACE_ID"))


def is_local_user(request: Any) -> bool:
    """Whether the visitor holds the owner's cookie, and this is no public Space. See `dp.ui.auth.owner`."""
    return not is_public() and bool((_scope(request) or {}).get(OWNER))


def on_zero_gpu() -> bool:
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def trainers() -> set[str]:
    return {name.strip().lower() for name in os.environ.get("DP_TRAINERS", "").split(",") if name.strip()}


def must_sign_in() -> bool:
    """Whether the page needs a way to say who one is. Hugging Face gives the second only to Spaces that ask for it."""
    is_space = os.environ.get("SYSTEM") == "spaces" and not on_zero_gpu()
    return is_space and bool(trainers()) and bool(os.environ.get("OAUTH_CLIENT_ID"))


def user_of(request: Any) -> str | None:
    """The name with which a visitor has signed in on Hugging Face. It comes from the signed cookie of the session, and
    never from what the visitor says.
    """
    said = _sign_in(request)
    return said["userinfo"]["preferred_username"] if said else None


def token_of(request: Any) -> str | bool | None:
    """With whose token the Hub is asked for a visitor: at home None, the login of this machine, for its owner; on
    a Space that of the visitor's own sign-in, from the same place as the name; False for none.
    """
    if is_local_user(request):
        return None
    said = _sign_in(request)
    return said["access_token"] if said else False


def has_login(request: Any) -> bool:
    """Whether the Hub can be asked for a visitor who types no token."""
    token = token_of(request)
    return bool(get_token() if token is None else token)


def hint(request: Any) -> dict[str, str]:
    """Return the `hint` that a form shows beside its token field: how to use this machine's login, where there is one
    that the visitor's browser may not use.
    """
    is_unused = not is_public() and not is_local_user(request) and bool(get_token())
    return {"hint": OPEN_WITH_KEY if is_unused else ""}


def seconds_signed_in(request: Any) -> float:
    """For how much longer the sign-in's token will do; a login of this machine has no end that is known here."""
    said = None if is_local_user(request) else _sign_in(request)
    return (said.get("expires_at") or float("inf")) - time.time() if said else float("inf")


def _sign_in(request: Any) -> dict[str, Any] | None:
    said = (_scope(request) or {}).get("session", {}).get("oauth_info")
    return None if not said or (said.get("expires_at") or float("inf")) < time.time() else said


def _scope(request: Any) -> dict[str, Any] | None:
    raw = getattr(request, "request", None) or request  # Gradio's wraps the server's
    return getattr(raw, "scope", None)
