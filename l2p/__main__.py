"""`python -m l2p VERB ...` is `l2p VERB ...`."""

import sys

from l2p.cli.main import main

sys.exit(main())
