"""Independent checkers: each knows the fault log and what machines say in plain terms (member
states, records, holdings), never the digests by which the machines compare themselves."""
