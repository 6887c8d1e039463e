"""The bus: accepted envelopes, durable and in token order, until they are visible. Floor 2."""
