"""What the documentation claims, re-runnable."""
