"""Judges: pure functions from what happened to what is wrong. No threads, no clock."""
