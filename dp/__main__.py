"""`python -m dp COMMAND`: each package owns its command; this file only dispatches."""

import sys
from importlib import import_module

HOMES = {"sample": "dp.serving.cli", "train": "dp.training.cli"}
HOMES |= {"publish-space": "dp.hub.space", "export-web": "dp.ui.web.cli"}
USAGE = """usage: python -m dp COMMAND [options]

  sample         draw images with a model
  train          train a model on images
  publish-space  publish this repository as a Hugging Face Space
  export-web     write a page on which a model runs in its visitors' browsers

python -m dp COMMAND --help describes a command's options"""


def main() -> None:
    command = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if command in ("-h", "--help"):
        print(USAGE)
    elif command in HOMES:
        import_module(HOMES[command]).main()
    else:
        sys.exit(USAGE)


if __name__ == "__main__":
    main()
