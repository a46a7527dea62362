from dp.ui.player.player import Player, png, recall, show

__all__ = ["Player", "png", "recall", "show"]
