"""Make accepted writes visible: claim, encode, put, publish, acknowledge. Floor 3."""
