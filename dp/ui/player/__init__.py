from dp.ui.player.player import Player, show

__all__ = ["Player", "show"]
