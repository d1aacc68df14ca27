"""Data for the trainers: pictures in, token shards out."""
