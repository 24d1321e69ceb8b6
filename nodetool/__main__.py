"""``python -m nodetool``."""

import sys

from nodetool.main import main

if __name__ == "__main__":
    sys.exit(main())
