"""`python -m k8snet`, and what the installed `k8snet` runs."""

import signal
import sys

# Until there is somebody to catch it, Ctrl-C ends this process as it ends others: without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from k8snet.cli import main

if __name__ == "__main__":
    sys.exit(main())
