"""What sending costs the PostgreSQL server, and how that grows: measured, modelled, and extrapolated."""
