"""Every SQL statement of the layer: built with SQLAlchemy Core from the tables, and how the driver and libpq run it."""
