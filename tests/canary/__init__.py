"""The canary proof: plant data at a site, and search every byte that leaves the site for it. See docs/canary.md."""
