"""`python -m k8snet`, and what the installed `k8snet` and `kubectl-k8snet` run."""

import signal
import sys

# Until there is somebody to catch it, Ctrl-C ends this process as it ends others: without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from k8snet.cli import main, plugin


def kubectl() -> int:
    """`kubectl k8snet`: kubectl runs an executable of the name kubectl-k8snet with all the arguments."""
    return main(plugin)


if __name__ == "__main__":
    sys.exit(main())
