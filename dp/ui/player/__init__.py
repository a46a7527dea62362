from dp.ui.player.player import Clock, Player, data_uri, png, recall, show

__all__ = ["Clock", "Player", "data_uri", "png", "recall", "show"]
