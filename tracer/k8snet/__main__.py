"""`python -m k8snet`."""

import sys

from k8snet.cli import main

sys.exit(main())
