"""``python -m trak_lightning`` is ``trak``."""

import sys

from trak_lightning.cli import main

sys.exit(main())
