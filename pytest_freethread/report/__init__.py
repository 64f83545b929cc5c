"""Results as something to read; decides nothing."""
