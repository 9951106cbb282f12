"""Every pod of this node, for as long as one likes: what goes wrong, while it goes wrong.

events of connections' ends and of DNS → `engine` → `Anomaly` → `fold` → lines, a dashboard, metrics.
"""
