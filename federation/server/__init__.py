"""The study's server: made, started and asked."""
