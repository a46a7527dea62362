from dp.ui.start.start import StartPicture, props_of, read

__all__ = ["StartPicture", "props_of", "read"]
