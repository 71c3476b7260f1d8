"""Load on a cluster's gateways, as clients in several regions would cause it, and what they saw.

Open-loop: requests begin when the plan says, whatever became of those before, and latency counts
from that instant. A client that stalls with the system it measures would leave out the worst of it.
"""
