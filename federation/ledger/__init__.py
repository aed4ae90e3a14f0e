"""The ledger of what came in and went out at a site: its hash-chained file, and its views for people."""
