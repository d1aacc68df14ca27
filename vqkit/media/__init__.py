"""Picture and sound files: reading and writing them. Its modules need the extra `media`; importing vqkit loads none."""
