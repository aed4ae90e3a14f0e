"""Paths and headers of the SuperLink's Fleet API, for processes that forward requests without importing Flower."""

PREFIX = "/v1/fleet/"
HEADERS = "flwr-"  # the names of Flower's own headers begin so
PUBLIC_KEY_HEADER = "flwr-public-key"
TIMESTAMP_HEADER = "flwr-timestamp"
