"""The figures of Abacus, a counter in Go on Redis. `make bench` does not run it, so they are constants."""

SOURCE = (
    "Measured once, on 2026-11-28, on 2 cores that were busy with other work: Abacus 1.6.0 (8c30196) with Redis "
    "7.0.15, and Tally of that time (767a782, before reads shared round trips and streams shared their bytes). "
    "`make bench` does not run Abacus. Figures of different machines are not comparable: compare the two columns. "
    "Abacus evaluates no rate limit by default, writes an access log, and may answer a read from a cache that is "
    "250 ms old."
)
# What was measured, and the figures of Abacus and of Tally. The live figures are those of 1,000 clients.
FIGURES = [
    ("one hit, server µs", "115", "141 (Redis), 152 (SQLite), 127 (memory)"),
    ("one read of a count, server µs", "91", "634 (Redis), 130 (SQLite), 127 (memory)"),
    ("one message of Server-Sent Events, server µs", "17.3", "71.7; `/live` 20.5"),
    ("a hit until the last client of the stream has it, p50 ms", "22", "209; `/live` 37"),
    ("one new connection, server µs", "250", "1,104; `/live` 2,061"),
]
