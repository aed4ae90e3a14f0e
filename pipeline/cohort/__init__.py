"""Makes a site's cohort: examines its series, selects one for each patient, stores tensors and labels.

May import `site`, `scoring`, `preprocessing`, `imaging`, `records` and `system`. Begin with `ingest`, then `store`;
training reads the cohort through `dataset`.
"""
