"""What runs jobs, and what the public names are made of; import from `tracedjobs` instead."""
