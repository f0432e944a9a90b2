"""Who runs a safety model. Each engine has a module of its own; importing this loads none."""
