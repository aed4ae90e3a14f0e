"""The API of the clinic and what the page is served by: FastAPI, in one process that never imports torch."""
