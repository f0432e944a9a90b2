"""One model family a file: how it is asked, and how its answer is read. Pure functions."""
