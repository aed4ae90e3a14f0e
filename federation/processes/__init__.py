"""The processes that we start, and their certain end."""
