"""Use cases of the doors: accept a write, answer a query, wait until visible. Floor 3."""
