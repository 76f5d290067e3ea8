"""`python -m dpo_kit`: see `dpo_kit.cli`."""

import sys

from dpo_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
