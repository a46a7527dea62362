"""The files of the player, for Gradio's page and for an exported one."""

from __future__ import annotations

SHARED = ("canvas", "format", "chart", "image_map", "playback", "menu", "transport", "storage")
STYLES = ("shared/transport", "shared/chart", "shared/image_map", "player/player", "player/step")
# What follows the run. A variant has only this: there are several of them on the page, and each comes with its scripts.
CORE = ("run", "panes", "charts", "selection", "walk", "files", "rerun", "variant", "player")
# What looks into it.
PANELS = ("mini", "inspector", "groups", "attention", "guidance", "best", "apart", "endings", "candidates", "map")
PANELS += ("moment", "recording", "browser", "panels")
