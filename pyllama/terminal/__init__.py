"""What a person at a terminal sees of work that takes long."""
