"""The clinic's API and the server of its page: FastAPI, in one process that never imports torch."""
