"""A small Django project with a worker, as an application would be."""
