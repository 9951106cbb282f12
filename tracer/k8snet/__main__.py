"""`python -m k8snet`."""

import signal
import sys

# Until there is somebody to catch it, Ctrl-C ends this process as it ends others: without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from k8snet.cli import main

sys.exit(main())
