"""One run: real threads, what they did, and what they were doing when they got stuck."""
