"""Data for the trainers: pictures and recordings in, token shards out."""
