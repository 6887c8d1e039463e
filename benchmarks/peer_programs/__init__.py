"""What runs in the environment of the peers, and imports nothing of this project."""
