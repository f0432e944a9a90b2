"""Moderating a reply while it is written."""
