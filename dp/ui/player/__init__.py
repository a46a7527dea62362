from dp.ui.player.player import Clock, Player, png, recall, show

__all__ = ["Clock", "Player", "png", "recall", "show"]
