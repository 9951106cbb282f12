"""A trace or a watch kept in a file, and judged again from it: on any machine, by any later version.

`file` is the format (docs/replay.md), `layout` what makes records of another version readable, `recorder` the writing
side, `replay` the reading one. What is in the frames are the agent's lines (`k8snet.agent.lines`).
"""
