"""Where events come from: probes put into live functions, which announce each access."""
