"""Who may train, and whose Hugging Face token is used. A visitor who may not train cannot see the runs either: their
images, samples, files and checkpoints are private.

    SPACE_ID            set by Hugging Face: the page is public
    DP_ALLOW_TRAINING   1: the owner of the Space has turned training on
    DP_TRAINERS         comma-separated names of Hugging Face users who may train; unset: every visitor may

Outside a Space every visitor may train. Only browsers with the owner's cookie use this machine's Hugging Face login.
The environment is read at each call.
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
    """Return in Markdown why a visitor may not train, or None if they may. request: Gradio's or Starlette's; by default
    that of the handler that is running.
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
    user = user_of(request or LocalContext.request.get(None))  # not public in Gradio; checked on 6.31
    if user is None:
        return SIGN_IN
    return None if user.lower() in names else NOT_YOU.format(name=user)


def is_public() -> bool:
    return bool(os.environ.get("SPACE_ID"))


def is_local_user(request: Any) -> bool:
    """Return whether the visitor has the owner's cookie, and this is not a Space. See `dp.ui.auth.owner`."""
    return not is_public() and bool((_scope(request) or {}).get(OWNER))


def on_zero_gpu() -> bool:
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def trainers() -> set[str]:
    return {name.strip().lower() for name in os.environ.get("DP_TRAINERS", "").split(",") if name.strip()}


def needs_sign_in() -> bool:
    """Return whether the page needs a sign-in button: on a Space with DP_TRAINERS that has OAuth enabled."""
    is_space = os.environ.get("SYSTEM") == "spaces" and not on_zero_gpu()
    return is_space and bool(trainers()) and bool(os.environ.get("OAUTH_CLIENT_ID"))


def user_of(request: Any) -> str | None:
    """Return the Hugging Face user name of a visitor who has signed in. It comes from the signed session cookie, so a
    visitor cannot choose it.
    """
    sign_in = _sign_in(request)
    return sign_in["userinfo"]["preferred_username"] if sign_in else None


def token_of(request: Any) -> str | bool | None:
    """Return the token for a visitor's requests to the Hub, as huggingface_hub takes it: None (this machine's login)
    for the owner, the token of a visitor who has signed in, and False (no token) for others.
    """
    if is_local_user(request):
        return None
    sign_in = _sign_in(request)
    return sign_in["access_token"] if sign_in else False


def has_login(request: Any) -> bool:
    """Return whether the visitor has a token without typing one."""
    token = token_of(request)
    return bool(get_token() if token is None else token)


def login_hint(request: Any) -> str:
    """Return the hint next to a form's token field: how to use this machine's login, if there is one that the visitor's
    browser may not use, else "".
    """
    is_unused = not is_public() and not is_local_user(request) and bool(get_token())
    return OPEN_WITH_KEY if is_unused else ""


def sign_in_seconds_left(request: Any) -> float:
    """Return the seconds until the sign-in's token expires; infinity if unknown, as for this machine's login."""
    sign_in = None if is_local_user(request) else _sign_in(request)
    return (sign_in.get("expires_at") or float("inf")) - time.time() if sign_in else float("inf")


def _sign_in(request: Any) -> dict[str, Any] | None:
    """Return the `oauth_info` in the signed session, or None if there is none or it has expired."""
    sign_in = (_scope(request) or {}).get("session", {}).get("oauth_info")
    return None if not sign_in or (sign_in.get("expires_at") or float("inf")) < time.time() else sign_in


def _scope(request: Any) -> dict[str, Any] | None:
    raw = getattr(request, "request", None) or request  # Gradio's request wraps Starlette's
    return getattr(raw, "scope", None)
