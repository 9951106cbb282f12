"""For all suites: makes `tests` a source root, so that a test can say `from unit.story import ...`.

Not by pytest's `pythonpath`, which would also be the place to hide the installed package from its own tests.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# No test asks the cluster of whoever runs it; commands that tests start inherit this.
os.environ["KUBECONFIG"] = os.devnull
os.environ.pop("KUBERNETES_SERVICE_HOST", None)

sys.path.insert(0, str(Path(__file__).parent))
