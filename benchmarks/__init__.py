"""asv suites: one module per question asked."""
