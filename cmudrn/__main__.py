"""`python -m cmudrn` is `cmudrn`."""

import sys

from cmudrn.cli.app import main

sys.exit(main())
