"""Load and comparison of deployments. Speaks HTTP to the service, imports nothing of it."""
