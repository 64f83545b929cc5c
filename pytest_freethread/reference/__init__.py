"""Components that are useful on their own, and subjects that the harness proves itself on."""
