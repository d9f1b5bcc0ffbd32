"""What the README and the docs say is true: their code runs."""
