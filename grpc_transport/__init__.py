"""A gRPC server over HTTP/2, on one thread that moves bytes. Knows nothing of Arrow or tables."""
