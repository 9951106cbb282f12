"""k8snet follows one flow through a Kubernetes node and says where it died, why, and how to mend it."""

__version__ = "0.1.0"
