"""Every SQL statement of the layer, built with SQLAlchemy Core from the tables."""
