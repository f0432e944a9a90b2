"""What moderating a stream costs and what it lets through: `python -m benchmarks.streaming`."""
