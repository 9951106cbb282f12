"""Two nodes, one report: an agent on each writes down what it sees, `join` reads both and judges.

`lines` is the language between them (docs/agent.md), `values` how a value is written in it, `report` the writing side,
`clock` what the packets say of the two clocks, `join` the reading side. Who carries the lines does not matter: a pod's
log, ssh, a file.
"""
