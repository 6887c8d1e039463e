"""Runs a statement over named relations built from files, under limits.

Floor 2. The door to the room is `engine.QueryEngine`; questions are put with `relations`.
"""
