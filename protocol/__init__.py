"""edged's protocol: state machines and wire formats that do no I/O.

Bytes, `now` (seconds of a monotonic clock), `wall_ms` (wall clock, milliseconds) and `rng` come
in; transmits, deadlines and events come out. The rules are numbered in SPEC.md.
"""
