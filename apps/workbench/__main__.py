"""``python -m apps.workbench``."""

import sys

from apps.workbench.start import main

if __name__ == "__main__":
    sys.exit(main())
