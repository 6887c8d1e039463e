"""The client matrix: real clients, each in an environment of its own, against real processes."""
