"""Results for the PACS: a structured report and a picture of each answer, and the outbox that sends them."""
