"""The shared language: identifiers, tokens, errors, settings, clock, statements, telemetry.

Floor 1. Every room may import it; it imports no other room.
"""

__version__ = "0.1.0"
